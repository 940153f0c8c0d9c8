"""Weight sharing by k-means on trees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import Clustered, decode
from bqjax.core.rules import Rule
from bqjax.methods.baselines.weight_sharing import kmeans_share, search_k


def params(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(rng.standard_normal((20, 30)), dtype), "bias": jnp.ones(30)},
        "b": {"kernel": jnp.asarray(rng.standard_normal((30, 20)) * 3, dtype)},
    }


def error(tree, compressed):
    difference = jax.tree.map(
        lambda x, y: np.square(np.asarray(x, np.float64) - np.asarray(y, np.float64)), tree, decode(compressed)
    )
    return sum(float(d.sum()) for d in jax.tree.leaves(difference))


def test_matrices_are_shared_and_the_rest_left():
    tree = params()
    compressed = kmeans_share(tree)
    assert compressed["a"]["bias"] is tree["a"]["bias"]
    for layer in "ab":
        leaf = compressed[layer]["kernel"]
        assert isinstance(leaf, Clustered)
        leaf.validate()
        assert (leaf.k, leaf.d, leaf.group) == (16, 1, None)
        assert decode(leaf).shape == tree[layer]["kernel"].shape
        assert float(jnp.square(decode(leaf) - tree[layer]["kernel"]).mean() / tree[layer]["kernel"].var()) < 0.0105


def test_a_group_has_one_codebook():
    tree = params()
    compressed = kmeans_share(tree, rules=[Rule("*/kernel", 16, group="all")])
    leaves = [compressed[layer]["kernel"] for layer in "ab"]
    np.testing.assert_array_equal(leaves[0].codebook, leaves[1].codebook)
    for leaf in leaves:
        leaf.validate()
        assert leaf.group == "all"
    assert error(tree, compressed) > error(tree, kmeans_share(tree))


def test_rules_set_k():
    compressed = kmeans_share(params(), 16, [Rule("a/kernel", 4), Rule("b/kernel"), Rule("*", skip=True)])
    assert [compressed[layer]["kernel"].k for layer in "ab"] == [4, 16]


def test_few_distinct_values_are_exact_and_trimmed():
    kernel = jnp.asarray(np.random.default_rng(1).choice(np.float32([-0.3, 0, 0.1, 7]), (20, 30)))
    compressed = kmeans_share({"w": kernel}, 16)
    compressed["w"].validate()
    assert compressed["w"].k == 4
    np.testing.assert_array_equal(decode(compressed)["w"], kernel)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_types(dtype):
    tree = params(dtype)
    # So close to one another that rounding the codebook makes entries equal.
    tree["b"]["kernel"] = jnp.asarray(1 + np.random.default_rng(2).random((30, 20)) / 60, dtype)
    compressed = kmeans_share(tree)
    for layer in "ab":
        leaf = compressed[layer]["kernel"]
        leaf.validate()
        assert leaf.codebook.dtype == leaf.dtype == dtype
        codebook = np.asarray(leaf.codebook[:, 0], np.float64)
        assert (np.diff(codebook) > 0).all()
        x = np.asarray(tree[layer]["kernel"], np.float64).ravel()
        np.testing.assert_allclose(np.abs(x - codebook[np.asarray(leaf.indices)]), np.abs(x[:, None] - codebook).min(1), atol=1e-7)


def test_under_jit():
    tree = {"a": params()["a"]}
    eager, jitted = kmeans_share(tree), jax.jit(kmeans_share)(tree)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_refusals():
    tree = params()
    for k in (0, 2.5):
        with pytest.raises(ValueError, match="k must be an integer of at least 1"):
            kmeans_share(tree, k)
    with pytest.raises(ValueError, match="must agree in k"):
        kmeans_share(tree, rules=[Rule("a/kernel", 4, group="g"), Rule("b/kernel", 8, group="g"), Rule("*", skip=True)])
    mixed = {"a": tree["a"]["kernel"], "b": tree["b"]["kernel"].astype(jnp.float16)}
    with pytest.raises(ValueError, match="must agree in dtype"):
        kmeans_share(mixed, rules=[Rule("*", group="g")])
    with pytest.raises(ValueError, match="'a' holds 1 NaN"):
        kmeans_share({"a": tree["a"]["kernel"].at[0, 0].set(jnp.nan)})
    with pytest.raises(ValueError, match="matches no leaf"):
        kmeans_share(tree, rules=[Rule("c/*")])


def test_search_finds_the_least_k_that_is_good_enough():
    tree = params()
    calls = []

    def score(p):
        calls.append(p)
        return -error(tree, p) / 100

    ks = (2, 4, 5, 16)
    compressed, chosen = search_k(tree, score, 0.2, [Rule("a/kernel"), Rule("b/kernel", 1.5)], ks=ks)
    for layer, limit in (("a", 0.2), ("b", 1.5)):
        name = f"{layer}/kernel"
        drops = {k: error(tree, kmeans_share(tree, k, [Rule(name)])) / 100 for k in ks}
        assert chosen[name].k == min(k for k in ks if drops[k] <= limit)
        assert compressed[layer]["kernel"].k == chosen[name].k
        assert chosen[name].drop == pytest.approx(drops[chosen[name].k], abs=1e-3)
        for k, drop in chosen[name].tried.items():
            assert drop == pytest.approx(drops[k], abs=1e-3)
    assert len(calls) <= 1 + 2 * 3
    assert compressed["a"]["bias"] is tree["a"]["bias"]


def test_search_together_and_each_by_itself():
    """A score that falls only when both leaves are coarse: by themselves both may be, together one may not."""
    tree = {"a": np.arange(32, dtype=np.float32).reshape(4, 8), "b": np.arange(20, dtype=np.float32).reshape(4, 5)}

    def score(p):
        coarse = [len(np.unique(np.asarray(p[name]))) <= 2 for name in "ab"]
        return 1.0 - all(coarse) if np.isfinite(np.asarray(p["a"])).all() else np.nan

    ks = (2, 4)
    _, chosen = search_k(tree, score, 0.5, ks=ks, together=False)
    assert [chosen[name].k for name in "ab"] == [2, 2]
    compressed, chosen = search_k(tree, score, 0.5, ks=ks)
    assert [chosen[name].k for name in "ab"] == [2, 4]
    assert score(decode(compressed)) == 1.0
    # A group has one codebook and one drop; where no k will do, leaves stay as they were.
    compressed, chosen = search_k(tree, lambda p: -error(tree, p), 0.5, [Rule("*", group="g")], ks=ks)
    assert [chosen[name].k for name in "ab"] == [None, None] and compressed["a"] is tree["a"]
    _, chosen = search_k(tree, lambda p: 0.0 if p["a"] is tree["a"] else np.nan, 0.5, [Rule("a")], ks=ks)
    assert chosen["a"].k is None and set(chosen["a"].tried.values()) == {np.inf}


def test_search_refusals():
    tree = {"w": np.float32([[1, 2], [3, 4]])}
    for ks in ((), (2, 2)):
        with pytest.raises(ValueError, match="ks must be distinct"):
            search_k(tree, lambda p: 1.0, 0.1, ks=ks)
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        search_k(tree, lambda p: 1.0, 0.1, ks=(0,))
    for limit in (-1, np.nan):
        with pytest.raises(ValueError, match="'w': max_drop must be a number of at least 0"):
            search_k(tree, lambda p: 1.0, limit)
    with pytest.raises(ValueError, match="as they are is nan"):
        search_k(tree, lambda p: np.nan, 0.1)
