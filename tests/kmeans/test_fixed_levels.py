"""Zeros that were pruned and values that mean something stay what they are, in every scalar method without data."""

import ml_dtypes
import numpy as np
import pytest

from bqjax import decode
from bqjax.kmeans.fixed_levels import fixed_levels
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.gaussian import BinConfig, fixed_edges, gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant

RNG = np.random.default_rng(0)


def two_of_four(shape):
    """2:4 sparsity: of four neighbours the two smallest are zero."""
    w = RNG.normal(size=shape).astype(np.float32) * 0.05
    fours = w.reshape(-1, 4)
    fours[np.arange(len(fours))[:, None], np.argsort(np.abs(fours), axis=1)[:, :2]] = 0
    return w


def pruned_channels(shape):
    w = RNG.normal(size=shape).astype(np.float32) * 0.05 + 0.001
    w[:, ::2] = 0
    return w


METHODS = {
    "k-means 16": lambda tree: kmeans_share(tree, 16),
    "k-means 32": lambda tree: kmeans_share(tree, 32),
    "k-means 2": lambda tree: kmeans_share(tree, 2),
    "bins 15": lambda tree: bin_and_quant(tree, gaussian_bins(tree, 15)),
    "bins 16": lambda tree: bin_and_quant(tree, gaussian_bins(tree, 16)),
    "bins 3": lambda tree: bin_and_quant(tree, gaussian_bins(tree, 3)),
    "wide bins": lambda tree: bin_and_quant(tree, gaussian_bins(tree, BinConfig(n_bins=16, sigma_scale=2))),
    "int8": quantize,
    "int4": lambda tree: quantize(tree, config=PTQConfig(bits=4)),
    "int4, asymmetric": lambda tree: quantize(tree, config=PTQConfig(bits=4, symmetric=False)),
}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("make", [two_of_four, pruned_channels])
@pytest.mark.parametrize("method", METHODS)
def test_pruned_zeros_stay_zero(method, make, dtype):
    w = make((64, 64)).astype(dtype)
    found = np.asarray(decode(METHODS[method]({"w": w}))["w"])
    assert (found[w == 0] == 0).all()
    if "int4" not in method:
        # Nor does anything else become zero where there are levels for it.
        assert (found == 0).mean() <= (w == 0).mean() + 0.02
    assert getattr(METHODS[method]({"w": w})["w"], "k", 0) <= 32


def test_a_leaf_of_few_zeros_is_as_it_was():
    """Zero is no level of its own among four in a hundred: k-means and bins are those of all weights."""
    w = RNG.normal(size=(50, 40)).astype(np.float32)
    w.reshape(-1)[:80] = 0
    assert fixed_levels([w]).size == 0 and fixed_edges([w], BinConfig(n_bins=16)) is None
    assert 0 not in np.asarray(kmeans_share({"w": w}, 16)["w"].codebook)


SENTINELS = [-1e4, -65504.0, float(np.finfo(np.float32).min)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sentinel", SENTINELS)
@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("int")])
def test_sentinels_are_exact_and_swallow_nothing(method, sentinel):
    w = RNG.normal(size=(60, 60)).astype(np.float32) * 0.05
    plain = np.asarray(decode(METHODS[method]({"w": w}))["w"])
    masked = w.copy()
    masked[3, :5] = sentinel
    found = np.asarray(decode(METHODS[method]({"w": masked}))["w"])
    assert (found[3, :5] == np.float32(sentinel)).all()
    rest = masked == w
    # One level fewer for the others, no more.
    error, before = (np.square(x[rest] - w[rest]).sum() for x in (found, plain))
    assert error < 3.5 * before


def test_what_a_sentinel_is():
    w = RNG.normal(size=2000).astype(np.float32)
    assert fixed_levels([w]).size == 0
    assert fixed_levels([np.append(w, np.float32([1e4, -1e4, 5e3, 5e3]))]).tolist() == [-1e4, 5e3, 1e4]
    assert fixed_levels([np.append(w, np.float32([1e6, 1e30]))]).tolist() == [1e6, np.float32(1e30)]
    assert fixed_levels([np.append(w, np.float32(-60))]).size == 0  # a large weight
    many = np.append(w, np.arange(1e4, 1e4 + 20, dtype=np.float32))
    assert fixed_levels([many]).size == 0  # two clusters of weights
    mask = np.where(RNG.random(2000) < 0.5, np.float32(-65504), w)
    assert fixed_levels([mask]).tolist() == [-65504.0]
    assert fixed_levels([np.float32([1e-9, 1.0, 3e5])]).size == 0  # of few weights none is far from the others
    assert fixed_levels([np.zeros(100, np.int8)]).size == 0
    assert fixed_levels([np.zeros(100, np.float32)]).tolist() == [0.0]
