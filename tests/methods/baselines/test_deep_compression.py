"""Sharing of what pruning leaves against plain k-means, and fine-tuning that leaves zeros alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bqjax.codec import load, save
from bqjax.core.leaves import decode
from bqjax.core.rules import Rule
from bqjax.kmeans.codebooks import codebooks, with_codebooks
from bqjax.kmeans.scalar import kmeans_scalar
from bqjax.methods.baselines.deep_compression import DeepCompressionConfig, deep_compress, share_nonzero, shared_gradients
from bqjax.methods.baselines.pruning import magnitude_masks, prune


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pruned(sparsity=0.7, dtype=np.float32, **kwargs):
    params = {"w": jnp.asarray(weights(30, 40, **kwargs), dtype)}
    return prune(params, magnitude_masks(params, sparsity))["w"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_left_is_shared_by_kmeans(dtype):
    w = pruned(dtype=dtype)
    leaf = share_nonzero({"w": w}, 8)["w"]
    leaf.validate()
    assert (leaf.k, leaf.codebook.dtype, float(leaf.codebook[0, 0])) == (8, dtype, 0)
    got, w = np.asarray(decode(leaf), np.float64), np.asarray(w, np.float64)
    np.testing.assert_array_equal(got == 0, w == 0)
    left = w[w != 0].astype(np.float32)
    best = kmeans_scalar(left, 7)
    assert np.square(got - w).sum() / left.size == pytest.approx(float(best.mse), rel=1e-3 if dtype == jnp.float32 else 2e-2)


def test_groups_and_few_values():
    tree = {"a": pruned(), "b": pruned(seed=1), "c": np.float32([[0, 3], [1, 0]])}
    out = share_nonzero(tree, 5, [Rule("[ab]", group="g"), Rule("c")])
    for leaf in out.values():
        leaf.validate()
    np.testing.assert_array_equal(out["a"].codebook, out["b"].codebook)
    assert (out["a"].group, out["c"].k) == ("g", 3)
    np.testing.assert_array_equal(decode(out["c"]), tree["c"])
    dense = share_nonzero({"w": np.float32([[1, 2], [2, 1]])}, 5)["w"]  # nothing is zero: no entry for it
    np.testing.assert_array_equal(dense.codebook, [[1], [2]])


def test_deep_compression_is_pruning_and_sharing():
    params = {"conv[0]*": weights(30, 40), "fc": weights(30, 40, seed=1), "b": np.ones(3, np.float32)}
    config = DeepCompressionConfig(sparsity=0.7, k=8)
    tree = deep_compress(params, [Rule("fc", DeepCompressionConfig(sparsity=0.5, k=4)), Rule("conv*")], config=config)
    masks = magnitude_masks(params, 0.7, [Rule("fc", 0.5), Rule("conv*")])
    expected = share_nonzero(prune(params, masks), 8, [Rule("fc", 4), Rule("conv*")])
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert tree["b"] is params["b"]


def test_the_file_costs_what_positions_and_values_cost_together(tmp_path):
    w = weights(200, 200)
    tree = deep_compress({"w": w}, config=DeepCompressionConfig(sparsity=0.9, k=16))
    info = save(tmp_path / "x.bq.safetensors", tree, coder="ans")
    counts = np.bincount(np.asarray(tree["w"].indices))
    entropy = -(counts / w.size * np.log2(counts / w.size)).sum()
    assert info.leaves[0].bits_per_weight < entropy + 0.1 < 1.0
    np.testing.assert_array_equal(decode(load(tmp_path / "x.bq.safetensors", like=tree))["w"], decode(tree)["w"])


def test_fine_tuning_leaves_zeros_alone():
    w = weights(16, 8)
    x = weights(64, 16, seed=2)
    tree = deep_compress({"w": w}, config=DeepCompressionConfig(sparsity=0.6, k=6))

    def loss(params):
        return jnp.square(x @ params["w"] - x @ w).mean()

    grads = jax.grad(loss)(decode(tree))
    shared = shared_gradients(tree, grads)["w"]
    # The gradient of each value by the chain rule, zero's apart.
    by_chain = jax.grad(lambda c: loss(decode(with_codebooks(tree, {"w": c}))))(jnp.asarray(tree["w"].codebook))
    np.testing.assert_allclose(shared[1:], by_chain[1:], rtol=1e-4, atol=1e-6)
    assert shared[0, 0] == 0 and by_chain[0, 0] != 0

    tx = optax.adam(1e-2)

    @jax.jit
    def step(tree, state):
        updates, state = tx.update(shared_gradients(tree, jax.grad(loss)(decode(tree))), state)
        return with_codebooks(tree, optax.apply_updates(codebooks(tree), updates)), state

    before, zeros, state = loss(decode(tree)), decode(tree)["w"] == 0, tx.init(codebooks(tree))
    tree = with_codebooks(tree, {"w": tree["w"].codebook * 1.3})  # k-means is close to the best already
    for _ in range(100):
        tree, state = step(tree, state)
    assert loss(decode(tree)) < before
    np.testing.assert_array_equal(decode(tree)["w"] == 0, zeros)


def test_refusals():
    w = weights(4, 4)
    for k in (1, 2.0, True):
        with pytest.raises(ValueError, match="'w': k must be an integer of at least 2"):
            share_nonzero({"w": w}, k)
        with pytest.raises(ValueError, match="k must be an integer of at least 2"):
            DeepCompressionConfig(k=k)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1"):
        DeepCompressionConfig(sparsity=1)
    with pytest.raises(ValueError, match="'w' is all zero, nothing is left to share: prune less"):
        share_nonzero({"w": w * 0}, 4)
    with pytest.raises(ValueError, match="'w' would be all zero"):
        deep_compress({"w": w * 0})
    with pytest.raises(ValueError, match="'w' holds 16 NaN"):
        share_nonzero({"w": w * np.nan}, 4)
    with pytest.raises(ValueError, match="must agree in dtype"):
        share_nonzero({"v": w.astype(np.float16), "w": w}, 4, [Rule("*", group="g")])
    with pytest.raises(ValueError, match="'w' is of integers"):
        share_nonzero({"w": w.astype(np.int8)}, 4, [Rule("w")])
    with pytest.raises(ValueError, match="must be a DeepCompressionConfig, got 4"):
        deep_compress({"w": w}, [Rule("w", 4)])
