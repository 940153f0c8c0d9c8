"""A sweep on four devices gives one device's rows, to the last bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.classification import classification_score
from bqjax.sensitivity.sweeps import Candidate, sweep

F32 = np.float32


class Cnn(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


def cnn():
    model = Cnn(rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.normal(size=(8, 6, 6, 1)).astype(F32), "labels": rng.integers(0, 3, 8).astype(np.int32)}
    return nnx_params(model), classification_score(nnx_apply(model)), [batch], {"conv/kernel": 6, "head/kernel": 1}


def mlp():
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.normal(size=shape).astype(F32)  # noqa: E731
    params = {"first": {"w": normal(4, 7), "b": normal(7)}, "last": normal(7)}

    def score(p, batch):
        x, y = batch
        z = jnp.tanh(x @ p["first"]["w"] + p["first"]["b"][None]) @ p["last"]
        return {"accuracy": ((z > 0) == y).sum(), "loss": jnp.square(z - y).sum()}, x.shape[0]

    return params, score, [(normal(n, 4), rng.integers(0, 2, n)) for n in (9, 4)], {"first/w": 141, "last": 3}


def all_sweeps():
    """Rows by model. The numbers of networks of a leaf are no multiples of 4; one is more than are ever sent at a time."""
    found = {}
    for model in (cnn, mlp):
        params, score, batches, sizes = model()
        candidates = [
            Candidate(leaf=leaf, magnitude=0.2 * (i + 1), draws=-(-n // 3)) for leaf, n in sizes.items() for i in range(min(n, 3))
        ]
        result = sweep(score, params, batches, candidates, key=jax.random.key(0), metric="-loss", group=1)
        if result.n_scores != sum(sizes.values()):
            raise RuntimeError(f"swept over {result.n_scores} networks")
        found[model.__name__] = [[dict(row.metrics), list(row.drops)] for row in result.rows]
    return found


def on_all_devices():
    return {"devices": jax.device_count(), **all_sweeps()}


def test_four_devices_give_the_rows_of_one(on_four_devices):
    expected = all_sweeps()
    assert on_four_devices("sweeps") == {"devices": 4, **expected}
    # Otherwise any mix-up of candidates would pass.
    for rows in expected.values():
        drops = [drop for _, drops in rows for drop in drops]
        assert len(set(drops)) > 0.9 * len(drops)
