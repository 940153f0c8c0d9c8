"""Weights that are larger than what may be in memory at a time; what is reported of them, and what every method keeps."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from command_line import run
from rich.console import Console

from bqjax import codec, decode
from bqjax.adapters.safetensors import write_weights
from bqjax.cli import compress_weights as weights_command
from bqjax.cli.compress_weights import compress_weights
from bqjax.cli.weights_methods import METHODS, WeightMethod
from bqjax.experiment.storage import same_tree
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant

QUIET = Console(quiet=True)
FOUR_BINS = WeightMethod(name="gaussian-bins", bins=4)
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

    def compress():
        compress_weights(*paths, method=FOUR_BINS, coder="raw", force=True, console=QUIET)

    compress()  # compiles
    tracemalloc.start()
    compress()
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
        compress_weights(tmp_path / "w.safetensors", tmp_path / "w.bq", method=FOUR_BINS, coder="raw", console=QUIET)


# --- what the report says, and what is kept exactly --------------------------------------------------------------------

RNG = np.random.default_rng(1)


def sparse(shape=(40, 64)):
    w = RNG.normal(size=shape).astype(np.float32)
    w.reshape(-1, 2)[np.arange(w.size // 2), RNG.integers(0, 2, w.size // 2)] = 0
    return w


def heavy(shape=(40, 64)):
    """As of a voice detector's recurrent layers: most weights are tiny beside a few."""
    return (RNG.normal(size=shape) ** 9).astype(np.float32)


def masked(shape=(40, 64)):
    w = RNG.normal(size=shape).astype(np.float32) * 0.05
    w[0, :3] = np.finfo(np.float32).min
    w[1, :3] = -1e4
    return w


def printed(tmp_path, capsys, tensors, *args):
    write_weights(tmp_path / "w.safetensors", tensors, force=True)
    assert run("compress", "w.safetensors", "--force", "--coder", "ans", *args) == 0
    text = " ".join(capsys.readouterr().out.split())
    return text, {name: np.asarray(leaf) for name, leaf in decode(codec.load("w.bq.safetensors")).items()}


def off(found, w):
    return np.linalg.norm(found.astype(np.float64) - w.astype(np.float64)) / np.linalg.norm(w.astype(np.float64))


def test_a_ruined_leaf_is_seen(tmp_path, capsys):
    """Beside a leaf of large weights the error of all together is small; the leaf that is ruined stands first and is warned of."""
    tensors = {"large": 1e4 * RNG.normal(size=(40, 64)).astype(np.float32), "ruined": heavy()}
    text, found = printed(tmp_path, capsys, tensors, "--method", "gaussian-bins")
    assert off(found["ruined"], tensors["ruined"]) > 0.3 > off(found["large"], tensors["large"])
    assert text.index("ruined", text.index("worst first")) < text.index("large", text.index("worst first"))
    assert f"warning: ruined is {100 * off(found['ruined'], tensors['ruined']):.1f} % off" in text
    assert "warning: large" not in text
    # The default bounds each leaf.
    text, found = printed(tmp_path, capsys, tensors)
    assert max(off(found[name], w) for name, w in tensors.items()) <= 0.05 and "warning" not in text


@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_sentinels_are_kept_by_every_method(method, tmp_path, capsys):
    tensors = {"sparse": sparse(), "masked": masked(), "plain": RNG.normal(size=(40, 64)).astype(np.float32)}
    text, found = printed(tmp_path, capsys, tensors, "--method", method)
    w, m = tensors["sparse"], tensors["masked"]
    assert (found["sparse"][w == 0] == 0).all()
    far = np.abs(m) > 100
    assert (found["masked"][far] == m[far]).all()
    # What is near zero beside a sentinel is still there.
    assert off(found["masked"][~far], m[~far]) < 0.5
    assert "50.0 -> " in text and "-3.40282e+38, -10000" in text
    assert "pruned zeros" not in text
    assert ("sentinels: k-means" in text) == (method in ("int8", "int4", "pq", "rq"))


@pytest.mark.parametrize("method", METHODS)
def test_rtol_bounds_every_leaf(method, tmp_path, capsys):
    tensors = {"heavy": heavy(), "plain": RNG.normal(size=(40, 64)).astype(np.float32)}
    text, found = printed(tmp_path, capsys, tensors, "--method", method, "--rtol", 0.05)
    assert max(off(found[name], w) for name, w in tensors.items()) <= 0.05
    left = [name for name, w in tensors.items() if np.array_equal(found[name], w)]
    assert all(f"{name}: left as it was: its relative error would be" in text for name in left)
    assert bool(left) == (method in ("gaussian-bins", "int4", "pq"))


def test_a_target_size_without_data(tmp_path, capsys):
    tensors = {"a": RNG.normal(size=(100, 200)).astype(np.float32), "b": 9 * RNG.normal(size=(50, 200)).astype(np.float32)}
    errors = {}
    for target in (9_000, 15_000):
        _, found = printed(tmp_path, capsys, tensors, "--target-size", target)
        assert 0.95 * target < (tmp_path / "w.bq.safetensors").stat().st_size <= target
        first, second = (off(found[name], w) for name, w in tensors.items())
        assert first == pytest.approx(second, rel=0.02)  # the same for all leaves
        errors[target] = first
    assert errors[15_000] < 0.5 * errors[9_000]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".bqjax")]
