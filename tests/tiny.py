"""A network that is made without training, as a task, and what a search makes of it: shared by tests of many rooms."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.classification import batches, classification_task
from bqjax.experiment import reference, run_row
from bqjax.methods.bins import SearchConfig
from bqjax.methods.bins.method import BinAndQuant

KEY = jax.random.key(0)


N_TEST = 210


N_CALIBRATION = 60


SEARCH = BinAndQuant(search=SearchConfig(n_bins=2, max_bins=4, max_drop=None, tolerance=None), label="B&Q <4>")


def forward(p, x, xp=jnp):
    return xp.maximum(x @ p["hidden"]["kernel"] + p["hidden"]["bias"][None], 0) @ p["head"]["kernel"]


@functools.cache
def data():
    """Three clouds that overlap, so that coarse weights change some answers: ``(inputs, labels)`` of 360 examples."""
    rng = np.random.default_rng(0)
    labels = np.arange(360) % 3
    centres = 1.6 * rng.normal(size=(3, 6))
    return (centres[labels] + rng.normal(size=(360, 6))).astype(np.float32), labels.astype(np.int32)


@functools.cache
def params():
    """Random features and the least-squares head on them."""
    inputs, labels = data()
    rng = np.random.default_rng(1)
    hidden = {"kernel": rng.normal(size=(6, 20)).astype(np.float32), "bias": rng.normal(size=20).astype(np.float32)}
    features = np.maximum(inputs[:90] @ hidden["kernel"] + hidden["bias"], 0)
    ridge = features.T @ features + 5 * np.eye(20)
    head = np.linalg.solve(ridge, features.T @ np.eye(3)[labels[:90]])
    return {"hidden": hidden, "head": {"kernel": head.astype(np.float32)}}


def tiny_task(data_dir=None, progress=None, **changes):
    inputs, labels = data()
    if progress:
        progress(1, 1, "made")
    calibration = batches(inputs[90:150], labels[90:150], 40)
    test = batches(inputs[150:], labels[150:], 80)  # the last batch is filled up
    fields = {"name": "tiny <network> & co", "params": params(), "calibration": calibration, "test": test, "outputs": None}
    return classification_task(forward, **fields | changes)


@functools.cache
def before():
    return reference(tiny_task())


@functools.cache
def searched():
    """A search from start to end, and the bytes of its file; what other tests need is taken from here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        outcome = run_row(tiny_task(), SEARCH, path, before(), key=KEY, metadata={"note": "x"})
        return outcome, path.read_bytes()
