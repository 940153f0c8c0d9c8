"""Two layers in NumPy and JAX, and sweeps of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.sensitivity.sweeps import sweep

F32 = np.float32
KEY = jax.random.key(5)


def params():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(4, 3)).astype(F32), "b": rng.normal(size=3).astype(F32), "unused": np.ones(2, F32)}


@functools.cache
def examples():
    rng = np.random.default_rng(1)
    return rng.normal(size=(8, 4)).astype(F32), rng.integers(0, 2, 8).astype(F32)


def batches(*sizes):
    ends = np.cumsum(sizes)
    return [tuple(array[end - n : end] for array in examples()) for n, end in zip(sizes, ends, strict=True)]


def score(p, batch):
    x, y = batch
    z = jnp.tanh(x @ p["a"]) @ p["b"]
    return {"accuracy": ((z > 0) == y).sum(), "loss": jnp.square(z - y).sum()}, x.shape[0]


def run(candidates, p=None, sizes=(8,), key=KEY, metric="-loss", score=score, **others):
    return sweep(score, params() if p is None else p, batches(*sizes), candidates, key=key, metric=metric, **others)


def loss_by_hand(changed=()):
    """The mean loss over all examples, in float64."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in {**params(), **dict(changed)}.items()}
    x, y = (np.asarray(array, np.float64) for array in examples())
    return float(np.square(np.tanh(x @ p["a"]) @ p["b"] - y).mean())
