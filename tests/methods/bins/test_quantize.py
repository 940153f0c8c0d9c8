"""Bin & Quant against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bqjax.core.leaves import Clustered, decode, index_dtype
from bqjax.core.rules import Rule
from bqjax.methods.bins.gaussian import BinConfig, Bins, bin_indices, gaussian_bins, gaussian_edges
from bqjax.methods.bins.quantize import bin_and_quant


def weights(shape=(64, 48), scale=1.0, mean=0.0, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale + mean).astype(dtype)


def oracle_edges(w, n_bins, mean=None, sigma=None, sigma_scale=1.0):
    """Gaussian edges of the weights' own moments, without those that bound an empty bin."""
    w = np.asarray(w).astype(np.float32).astype(np.float64).reshape(-1)
    mean = w.mean() if mean is None else mean
    sigma = (w.std() if sigma is None else sigma) * sigma_scale
    edges = mean + sigma * scipy.stats.norm.ppf(np.arange(1, n_bins) / n_bins)
    counts = np.histogram(w, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
    # A filled bin keeps its lower edge, save the first, which takes in the empty ones below it.
    filled = np.flatnonzero(counts)
    return edges[filled[1:] - 1]


def oracle_quantized(arrays, edges):
    """Every weight replaced by the mean of its bin over all the arrays; also indices and means."""
    edges = np.asarray(edges, np.float32)
    flat = [np.asarray(a).astype(np.float32).reshape(-1) for a in arrays]
    index = [np.digitize(f, edges) for f in flat]
    everything, where = np.concatenate(flat).astype(np.float64), np.concatenate(index)
    means = np.array([everything[where == i].mean() if (where == i).any() else 0.0 for i in range(len(edges) + 1)])
    return index, means, [means[i].reshape(np.shape(a)) for i, a in zip(index, arrays, strict=True)]


@pytest.mark.parametrize("n_bins", [1, 2, 3, 8, 255])
@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (-3.5, 0.01), (2.0, 1e6)])
def test_gaussian_edges_agree_with_scipy(n_bins, mean, sigma):
    edges = gaussian_edges(n_bins, mean, sigma)
    assert edges.shape == (n_bins - 1,)
    assert edges.dtype == np.float64
    expected = scipy.stats.norm.ppf(np.arange(1, n_bins) / n_bins, mean, sigma)
    np.testing.assert_allclose(edges, expected, rtol=1e-12, atol=1e-14 * sigma)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("n_bins", [2, 8, 100])
def test_bins_indices_and_means_agree_with_numpy(scale, dtype, n_bins):
    if dtype == np.float16 and scale == 1e6:
        scale = 1e3  # beyond the range of float16
    w = weights(scale=scale, mean=0.3 * scale, dtype=dtype)
    stats = gaussian_bins({"w": w}, n_bins)
    edges = np.asarray(stats["w"].edges)
    assert edges.dtype == np.float32
    np.testing.assert_allclose(edges, oracle_edges(w, n_bins), rtol=1e-5, atol=1e-6 * scale)

    leaf = bin_and_quant({"w": w}, stats)["w"]
    leaf.validate("w")
    (index,), means, (expected,) = oracle_quantized([w], edges)
    np.testing.assert_array_equal(leaf.indices, index)
    assert leaf.codebook.shape == (len(means), 1)
    assert leaf.codebook.dtype == leaf.dtype == dtype
    assert leaf.indices.dtype == index_dtype(len(means))
    eps = float(jnp.finfo(dtype).eps)
    tiny = float(jnp.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(np.asarray(leaf.codebook[:, 0], np.float64), means, rtol=eps, atol=max(1e-7 * scale, tiny))
    decoded = decode(leaf)
    assert decoded.dtype == dtype
    np.testing.assert_allclose(np.asarray(decoded, np.float64), expected, rtol=eps, atol=max(1e-7 * scale, tiny))


@pytest.mark.parametrize(
    "given_", [{"sigma": 0.2}, {"mean": 0.5}, {"sigma_scale": 1.7}, {"sigma": 2.0, "mean": -0.1, "sigma_scale": 0.3}]
)
def test_given_placement_is_kept(given_):
    w = weights()
    edges = gaussian_bins({"w": w}, BinConfig(n_bins=6, **given_))["w"].edges
    np.testing.assert_allclose(edges, oracle_edges(w, 6, **given_), rtol=1e-5, atol=1e-6)
    assert len(edges) == 5


def test_a_wider_sigma_lowers_the_entropy_of_the_indices():
    w = weights()
    entropies = []
    for scale in (1.0, 1.5, 2.5):
        leaf = bin_and_quant({"w": w}, gaussian_bins({"w": w}, BinConfig(n_bins=8, sigma_scale=scale)))["w"]
        entropies.append(scipy.stats.entropy(np.bincount(leaf.indices), base=2))
    assert entropies[0] > 2.99
    assert entropies[0] > entropies[1] > entropies[2]


def test_empty_bins_vanish():
    w = np.array([[-5.0, -5.1], [5.0, 5.2]], np.float32)
    stats = gaussian_bins({"w": w}, 16)
    leaf = bin_and_quant({"w": w}, stats)["w"]
    assert set(np.asarray(leaf.indices).tolist()) == set(range(leaf.k))
    np.testing.assert_allclose(stats["w"].edges, oracle_edges(w, 16), rtol=1e-6)
    assert leaf.k == len(oracle_edges(w, 16)) + 1 < 4


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-30, 3e37])
@pytest.mark.parametrize("shape", [(40, 25), (1, 1)])
def test_a_constant_leaf_becomes_one_exact_value(value, shape):
    w = np.full(shape, value, np.float32)
    leaf = bin_and_quant({"w": w}, gaussian_bins({"w": w}, 8))["w"]
    assert leaf.k == 1
    np.testing.assert_array_equal(decode(leaf), w)


def test_a_scalar_leaf_can_be_chosen():
    w = np.float32(0.7)
    leaf = bin_and_quant({"w": w}, gaussian_bins({"w": w}, 8, [Rule("w")]))["w"]
    assert decode(leaf) == w
    assert decode(leaf).shape == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_more_bins_than_distinct_values_lose_nothing(dtype):
    # Not every mean over many equal float32 values is that value in naive summation.
    values = np.array([-0.7, -0.3, 0.1, 0.4, 0.9]).astype(dtype)
    w = values[np.random.default_rng(0).integers(0, 5, (100, 30))]
    leaf = bin_and_quant({"w": w}, gaussian_bins({"w": w}, 64))["w"]
    assert leaf.k == 5
    np.testing.assert_array_equal(decode(leaf), w)


@pytest.mark.parametrize("n_bins", [0, -1])
def test_fewer_than_one_bin_is_an_error(n_bins):
    with pytest.raises(ValueError, match=f"n_bins must be at least 1, got {n_bins}"):
        gaussian_bins({"w": weights()}, n_bins)
    with pytest.raises(ValueError, match=f"n_bins must be at least 1, got {n_bins}"):
        gaussian_bins({"w": weights()}, 8, [Rule("w", n_bins)])


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"sigma": -1.0}, {"sigma_scale": np.inf}, {"sigma": np.nan}, {"mean": np.inf}])
def test_placements_that_make_no_bins_are_errors(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        BinConfig(**wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_weights_that_are_not_finite_name_the_leaf(value, dtype):
    w = weights(dtype=dtype)
    stats = gaussian_bins({"a": {"w": w}}, 4)
    w = w.copy()
    w[3, 4] = value
    for call in (lambda: gaussian_bins({"a": {"w": w}}, 4), lambda: bin_and_quant({"a": {"w": w}}, stats)):
        with pytest.raises(ValueError, match="leaf 'a/w' holds 1 NaN or infinite values of 3072"):
            call()


def test_one_bin_is_the_mean():
    w = weights()
    leaf = bin_and_quant({"w": w}, gaussian_bins({"w": w}, 1))["w"]
    assert leaf.k == 1
    assert float(leaf.codebook[0, 0]) == pytest.approx(w.mean(dtype=np.float64), abs=1e-8)


def group_params():
    return {
        "a": weights((30, 20), 1.0, seed=1),
        "b": weights((7, 5), 3.0, 1.0, seed=2),
        "c": weights((4, 4), seed=3),
        "bias": np.arange(5, dtype=np.float32),
    }


def test_a_group_shares_the_means_over_all_its_leaves():
    params = group_params()
    stats = gaussian_bins(params, 8, [Rule("[ab]", 6, group="g"), Rule("c")])
    both = np.concatenate([params["a"].reshape(-1), params["b"].reshape(-1)])
    np.testing.assert_allclose(stats["a"].edges, oracle_edges(both, 6), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stats["a"].edges, stats["b"].edges)
    assert [stats[n].group for n in "abc"] == ["g", "g", None]

    out = bin_and_quant(params, stats)
    _, means, (a, b) = oracle_quantized([params["a"], params["b"]], stats["a"].edges)
    np.testing.assert_allclose(out["a"].codebook[:, 0], means, rtol=1e-6)
    np.testing.assert_array_equal(out["a"].codebook, out["b"].codebook)
    np.testing.assert_allclose(decode(out["a"]), a, rtol=1e-6)
    np.testing.assert_allclose(decode(out["b"]), b, rtol=1e-6)
    assert [out[n].group for n in "abc"] == ["g", "g", None]
    # The leaf outside the group has bins and means of its own.
    _, means, _ = oracle_quantized([params["c"]], stats["c"].edges)
    np.testing.assert_allclose(out["c"].codebook[:, 0], means, rtol=1e-6, atol=1e-7)


def test_leaves_of_a_group_keep_their_own_dtypes():
    params = {"a": weights((30, 20), dtype=jnp.bfloat16), "b": weights((7, 5), seed=2)}
    out = bin_and_quant(params, gaussian_bins(params, 4, [Rule("*", group="g")]))
    _, means, _ = oracle_quantized(list(params.values()), gaussian_bins(params, 4, [Rule("*", group="g")])["a"].edges)
    for name in params:
        assert out[name].dtype == out[name].codebook.dtype == params[name].dtype
        np.testing.assert_array_equal(out[name].codebook[:, 0], means.astype(np.float32).astype(params[name].dtype))


def test_a_group_with_two_settings_is_an_error():
    rules = [Rule("a", 4, group="g"), Rule("b", 8, group="g")]
    with pytest.raises(ValueError, match=r"group 'g' has leaves with different settings \[4, 8\]"):
        gaussian_bins(group_params(), 8, rules)


def test_stats_of_a_group_must_have_the_same_edges():
    params = group_params()
    edges = np.array([-0.5, 0.5], np.float32)
    for other in (edges[:1], edges + 1):
        with pytest.raises(ValueError, match=r"group 'g'.*'a', 'b'.*different"):
            bin_and_quant(params, {"a": Bins(edges, "g"), "b": Bins(other, "g")})


def test_stats_that_name_no_leaf_are_an_error():
    with pytest.raises(ValueError, match="no leaf is named 'conv/kernel'"):
        bin_and_quant({"conv": {"weight": weights()}}, {"conv/kernel": Bins(np.zeros(1, np.float32))})


@pytest.mark.parametrize(
    "leaf",
    [
        np.ones((2, 2), np.int32),
        np.zeros((0, 2), np.float32),
        Clustered(np.zeros(4, np.uint8), np.zeros((1, 1), np.float32), (2, 2), np.float32),
    ],
)
def test_stats_on_a_leaf_that_cannot_be_compressed_name_it(leaf):
    with pytest.raises(ValueError, match="'conv'"):
        bin_and_quant({"conv": leaf}, {"conv": Bins(np.zeros(1, np.float32))})


def test_leaves_without_stats_pass_untouched():
    params = group_params()
    out = bin_and_quant(params, {"a": Bins(np.zeros(1, np.float32))})
    assert all(out[name] is params[name] for name in ("b", "c", "bias"))
    assert bin_and_quant(params, {}) == params


def test_a_bin_by_hand_that_holds_nothing_is_zero_and_unused():
    w = np.array([[-1.0, 1.0], [1.0, 3.0]], np.float32)
    leaf = bin_and_quant({"w": w}, {"w": Bins(np.array([0.0, 10.0, 20.0], np.float32))})["w"]
    np.testing.assert_allclose(leaf.codebook[:, 0], [-1, 5 / 3, 0, 0], rtol=1e-6)
    leaf.validate("w")


@pytest.mark.parametrize("n_bins", [5, 100])  # on both sides of the change of algorithm
def test_a_weight_equal_to_an_edge_goes_to_the_upper_bin(n_bins):
    edges = np.linspace(-1, 1, n_bins - 1, dtype=np.float32)
    w = np.concatenate([edges, np.nextafter(edges, np.float32(-9)), np.nextafter(edges, np.float32(9))])
    upper = np.arange(1, n_bins)
    np.testing.assert_array_equal(bin_indices(w, edges), np.concatenate([upper, upper - 1, upper]))


# Numbers that the arithmetic keeps apart: denormals are flushed by it.
numbers = st.one_of(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]))


@given(st.lists(numbers, min_size=12, max_size=12), st.lists(numbers, min_size=4, max_size=4, unique=True))
def test_any_edges_agree_with_numpy(values, edges):
    w, edges = np.array(values, np.float32).reshape(3, 4), np.sort(np.array(edges, np.float32))
    leaf = bin_and_quant({"w": w}, {"w": Bins(edges)})["w"]
    (index,), _, (expected,) = oracle_quantized([w], edges)
    np.testing.assert_array_equal(leaf.indices, index)
    decoded = np.asarray(decode(leaf), np.float64)
    # Relative to the bin's largest weight: opposite signs may cancel in the mean.
    size = np.array([np.abs(w.reshape(-1)[index == i]).max() for i in index]).reshape(w.shape)
    assert (np.abs(decoded - expected) <= 4e-7 * size).all()


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_jit_gives_what_eager_gives(dtype):
    params = {"a": weights((40, 30), dtype=dtype), "b": weights((6, 7), seed=1), "bias": np.ones(3, np.float32)}
    stats = gaussian_bins(params, 8, [Rule("a", 5, group="g"), Rule("b", 5, group="g"), Rule("bias", skip=True)])
    eager, jitted = bin_and_quant(params, stats), jax.jit(bin_and_quant)(params, stats)
    assert jax.tree.structure(jitted) == jax.tree.structure(eager)
    for name in ("a", "b"):
        np.testing.assert_array_equal(jitted[name].indices, eager[name].indices)
        np.testing.assert_allclose(
            np.asarray(jitted[name].codebook, np.float32), np.asarray(eager[name].codebook, np.float32), rtol=1e-6
        )
        jitted[name].validate(name)


def test_moments_stand_weights_of_any_scale():
    # Their squares are beyond float32.
    for scale in (1e-30, 1e30):
        w = weights(scale=scale)
        edges = gaussian_bins({"w": w}, 4)["w"].edges
        np.testing.assert_allclose(edges, oracle_edges(w, 4), rtol=1e-5, atol=1e-6 * scale)
