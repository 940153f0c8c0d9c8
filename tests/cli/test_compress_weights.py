"""Weights that are larger than what may be in memory at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from rich.console import Console

from bqjax import codec
from bqjax.adapters.safetensors import write_weights
from bqjax.cli import compress_weights as weights_command
from bqjax.cli.compress_weights import compress_weights
from bqjax.experiment.storage import same_tree
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant

QUIET = Console(quiet=True)
N, SIDE = 32, 256
LEAF = 4 * SIDE**2  # bytes


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_command, "_THOROUGH_BYTES", 0)  # the lossless row at level 19 would take most of the time
    rng = np.random.default_rng(0)
    tensors = {f"layer{i}": rng.normal(size=(SIDE, SIDE)).astype(np.float32) for i in range(N)}
    write_weights(tmp_path / "w.safetensors", tensors | {"bias": np.zeros(7, np.float32)})
    return tensors | {"bias": np.zeros(7, np.float32)}


def test_one_leaf_is_in_memory_at_a_time(weights, tmp_path):
    """NumPy's memory; that of JAX holds arrays of one leaf as well, which benchmarks/large.py measures from outside."""
    paths = tmp_path / "w.safetensors", tmp_path / "w.bq"

    def run():
        compress_weights(*paths, method="gaussian-bins", bins=4, coder="raw", force=True, console=QUIET)

    run()  # compiles
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < N * LEAF / 2
    loaded = codec.load(tmp_path / "w.bq")
    assert same_tree(loaded, bin_and_quant(weights, gaussian_bins(weights, 4)))


def test_a_file_that_decodes_to_something_else_is_noticed(weights, tmp_path, monkeypatch):
    leaves = codec.read_leaves

    def damaged(path):
        for name, leaf in leaves(path):
            yield name, (leaf + 1 if name == "bias" else leaf)

    monkeypatch.setattr(weights_command.codec, "read_leaves", damaged)
    with pytest.raises(RuntimeError, match="leaf 'bias' does not decode to what was written"):
        compress_weights(tmp_path / "w.safetensors", tmp_path / "w.bq", method="gaussian-bins", bins=4, coder="raw", console=QUIET)
