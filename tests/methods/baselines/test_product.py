"""Product quantization against scikit-learn, binarization against its formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from bqjax.core.blocks import output_first, to_blocks
from bqjax.core.leaves import Clustered, Masked, decode
from bqjax.core.rules import Rule
from bqjax.methods.baselines.product import ProductConfig, binarize, product_quantize

KEY = jax.random.key(0)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_error_is_that_of_scikit_learn():
    w = weights(40, 60)
    leaf = product_quantize({"w": w}, key=KEY, config=ProductConfig(k=24, d=4))["w"]
    leaf.validate()
    blocks = w.T.reshape(-1, 4)
    reference = KMeans(24, n_init=3, random_state=0).fit(blocks)
    ours = np.square(np.asarray(decode(leaf)) - w).sum()
    assert ours < 1.03 * reference.inertia_
    # A fixed point of Lloyd's algorithm: entries are the means of their blocks, and each block is with the nearest.
    codebook, indices = np.asarray(leaf.codebook), np.asarray(leaf.indices)
    distance = np.square(blocks[:, None] - codebook).sum(2)
    np.testing.assert_array_equal(distance.argmin(1), indices)
    np.testing.assert_allclose(codebook, [blocks[indices == j].mean(0) for j in range(24)], atol=2e-2)


def test_blocks_of_wide_layers_are_clustered_where_they_lie():
    w = weights(8, 300) + 5
    leaf = product_quantize({"w": w}, key=KEY, config=ProductConfig(k=16, d=4))["w"]
    leaf.validate()
    blocks = w.T.reshape(-1, 4).astype(np.float64)
    distance = np.square(blocks[:, None] - np.asarray(leaf.codebook, np.float64)).sum(2)
    chosen = distance[np.arange(600), np.asarray(leaf.indices)]
    np.testing.assert_allclose(chosen, distance.min(1), atol=1e-5)
    assert chosen.sum() < 1.1 * KMeans(16, n_init=1, random_state=0).fit(blocks).inertia_


def test_padding_counts_nowhere():
    w = weights(3, 3, 2, 5) + 4  # rows of 18 weights: three blocks of 5 and one of 3
    leaf = product_quantize({"w": w}, key=KEY, config=ProductConfig(k=20, d=5))["w"]
    leaf.validate()
    np.testing.assert_allclose(decode(leaf), w, atol=1e-5)  # as many entries as blocks


def test_few_distinct_blocks_are_exact_and_trimmed():
    blocks = weights(3, 4)
    w = blocks[np.random.default_rng(1).integers(0, 3, 160)].reshape(20, 32).T
    leaf = product_quantize({"w": w}, key=KEY, config=ProductConfig(k=16, d=4))["w"]
    leaf.validate()
    assert leaf.k <= 4
    np.testing.assert_allclose(decode(leaf), w, atol=1e-6)
    constant = product_quantize({"w": np.full((32, 20), 0.5, np.float32)}, key=KEY, config=ProductConfig(k=16, d=4))["w"]
    constant.validate()
    assert constant.k == 1


def test_rules_and_short_types():
    tree = {"a": jnp.asarray(weights(32, 20), jnp.bfloat16), "b": weights(32, 20), "c": weights(8)}
    out = product_quantize(tree, [Rule("a"), Rule("b", ProductConfig(k=16, d=4))], key=KEY, config=ProductConfig(k=8, d=4))
    out["a"].validate()
    assert (out["a"].codebook.shape, out["b"].codebook.shape) == ((8, 4), (16, 4))
    assert out["c"] is tree["c"]
    x = np.asarray(to_blocks(tree["a"], output_first(2), 4), np.float64)
    distance = np.square(x[:, None] - np.asarray(out["a"].codebook, np.float64)).sum(2)
    np.testing.assert_allclose(distance[np.arange(len(x)), np.asarray(out["a"].indices)], distance.min(1), atol=1e-6)


@pytest.mark.parametrize("axis", [None, -1, 0])
def test_signs_with_the_best_scale(axis):
    w = weights(3, 3, 4, 6)
    leaf = binarize({"w": w}, axis=axis)["w"]
    leaf.validate()
    others = None if axis is None else tuple(a for a in range(4) if a != axis % 4)
    size = np.abs(w).mean(others, keepdims=axis is not None)
    got = np.asarray(decode(leaf))
    np.testing.assert_allclose(got, np.where(w >= 0, 1, -1) * size, rtol=1e-6)
    for factor in (0.99, 1.01):  # no other scale is nearer
        assert np.square(got - w).sum() < np.square(got * factor - w).sum()


def test_signs_of_zeros_and_extremes():
    w = np.zeros((4, 3), np.float32)
    w[:, 1], w[:, 2] = [1, 0, -1, 2], [3e38, -3e38, 3e38, 3e38]
    leaf = binarize({"w": w}, axis=1)["w"]
    leaf.validate()
    # Zeros stay, and the scale is that of the others.
    np.testing.assert_allclose(decode(leaf), [[0, 4 / 3, 3e38], [0, 0, -3e38], [0, -4 / 3, 3e38], [0, 4 / 3, 3e38]], rtol=1e-6)
    few = np.ones((5, 5), np.float32)
    few[2, 2] = 0  # 4 % of the weights: a zero by chance
    assert round(float(decode(binarize({"w": few})["w"])[2, 2]), 4) == 0.96
    zeros = binarize({"w": np.zeros((2, 2), np.float16)})["w"]
    zeros.validate()
    assert zeros.k == 1 and not decode(zeros).any()


def test_blocks_of_pruned_weights():
    """Entries are fitted to what is left: less error than clustering the zeros with the rest, and zeros exact."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 48)).astype(np.float32)
    kept = rng.random((16, 4, 48)).argsort(1).argsort(1) < 2  # 2:4 along the inputs
    w *= kept.reshape(w.shape)
    config = ProductConfig(k=16, d=4)
    leaf = product_quantize({"w": w}, key=KEY, config=config)["w"]
    leaf.validate()
    got = np.asarray(decode(leaf))
    assert isinstance(leaf, Masked) and leaf.leaf.k == 16
    np.testing.assert_array_equal(got[w == 0], 0)
    traced = jax.jit(lambda w: decode(product_quantize({"w": w}, key=KEY, config=config)["w"]))(w)
    assert np.square(got - w).sum() < 0.7 * np.square(np.asarray(traced) - w).sum()


def test_channels_of_zeros_take_one_entry_and_no_mask():
    w = weights(32, 12)
    w[:, ::3] = 0
    leaf = product_quantize({"w": w}, key=KEY, config=ProductConfig(k=9, d=4))["w"]
    assert isinstance(leaf, Clustered) and leaf.k == 9
    np.testing.assert_array_equal(np.asarray(leaf.codebook)[0], 0)
    np.testing.assert_array_equal(np.asarray(decode(leaf))[:, ::3], 0)
    # One weight left: fewer blocks of weights than entries.
    one = np.zeros((8, 8), np.float16)
    one[3, 3] = 2
    np.testing.assert_array_equal(decode(product_quantize({"w": one}, key=KEY, config=ProductConfig(k=4, d=2))["w"]), one)
    np.testing.assert_array_equal(decode(product_quantize({"w": one}, key=KEY, config=ProductConfig(k=1, d=2))["w"]), one)


def test_refusals():
    w = weights(8, 8)
    for field in ("k", "d", "iterations"):
        with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1, got 0"):
            ProductConfig(**{field: 0})
    with pytest.raises(ValueError, match="'w' has 16 blocks of 4, fewer than the 17 codebook entries: give it k of at most 16"):
        product_quantize({"w": w}, key=KEY, config=ProductConfig(k=17))
    with pytest.raises(ValueError, match=r"'w' of shape .* has rows of 8 weights, fewer than a block of 9: give it d of at most 8"):
        product_quantize({"w": w}, key=KEY, config=ProductConfig(k=2, d=9))
    with pytest.raises(ValueError, match="must be a ProductConfig, got 4"):
        product_quantize({"w": w}, [Rule("w", 4)], key=KEY)
    for method in (lambda *a: product_quantize(*a, key=KEY, config=ProductConfig(k=2)), binarize):
        with pytest.raises(ValueError, match="group"):
            method({"w": w}, [Rule("w", group="g")])
        with pytest.raises(ValueError, match="'w' is of integers, int8"):
            method({"w": w.astype(np.int8)}, [Rule("w")])
        with pytest.raises(ValueError, match="'w' holds 64 NaN"):
            method({"w": w * np.nan})
    with pytest.raises(ValueError, match="'w' has 2 dimensions and no axis 2"):
        binarize({"w": w}, axis=2)
