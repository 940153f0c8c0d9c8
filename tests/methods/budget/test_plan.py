"""Layers stored as a plan says, each against the method that it stands for."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import forward, params, tiny_task

from bqjax import codec, decode
from bqjax.core.classification import classification_outputs
from bqjax.core.leaves import Clustered
from bqjax.core.tree import named_leaves
from bqjax.kmeans.ecvq import ecvq_refine
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import BinConfig, gaussian_bins
from bqjax.methods.budget.plan import Blocks, BudgetConfig, Layer, Planned, Values, compress_layer, weights_importance
from bqjax.methods.gwk.cluster import GWKConfig, gwk_cluster

KEY = jax.random.key(3)


@functools.cache
def task():
    return tiny_task(outputs=classification_outputs(forward))


@functools.cache
def importance():
    return weights_importance(task(), key=KEY, draws=4)


def test_values_are_ecsq():
    layer = Layer(("hidden/kernel",), Values(bins=6, lmbda=0.00625, sigma_scale=1.5))
    made = compress_layer(params(), layer, importance(), key=KEY)["hidden/kernel"]
    own = {"w": params()["hidden"]["kernel"]}
    stats = gaussian_bins(own, BinConfig(n_bins=6, sigma_scale=1.5))
    expected = bin_and_quant_ecsq(own, stats, {"w": importance()["hidden/kernel"]}, 0.00625)["w"]
    np.testing.assert_array_equal(made.indices, expected.indices)
    # The codebook in half precision, which moves no entry further than half precision moves the largest.
    assert made.codebook.dtype == np.float16
    limit = 2**-11 * np.abs(expected.codebook).max()
    assert np.abs(np.asarray(made.codebook, np.float32) - np.asarray(expected.codebook)).max() <= limit


@pytest.mark.parametrize("lmbda", [pytest.param(0.0, marks=pytest.mark.slow), 0.00375])
def test_blocks_are_clustered_and_then_ecvq(lmbda):
    layer = Layer(("hidden/kernel",), Blocks(d=2, bits=3, lmbda=lmbda))
    made = compress_layer(params(), layer, importance(), key=KEY)["hidden/kernel"]
    made.validate("w")
    assert made.d == 2 and made.k <= 8 and made.codebook.dtype == np.float16
    if lmbda:
        starts = {}
        compress_layer(params(), Layer(layer.names, Blocks(d=2, bits=3)), importance(), key=KEY, starts=starts)
        (start,) = starts.values()
        w, h = params()["hidden"]["kernel"], importance()["hidden/kernel"]
        expected = ecvq_refine(w, h, start, lmbda)
        np.testing.assert_array_equal(made.indices, expected.indices)
    else:
        # Weighted by importance: a smaller weighted error than plain clusters have.
        plain = gwk_cluster({"w": params()["hidden"]["kernel"]}, None, key=KEY, config=GWKConfig(bits=3, cv=2, pw=2))[0]["w"]
        h = importance()["hidden/kernel"] + 0.02 * importance()["hidden/kernel"].mean()

        def error(leaf):
            return float((h * np.square(np.asarray(leaf.decode()) - params()["hidden"]["kernel"])).sum())

        assert error(made) < error(plain)


def test_leaves_of_a_layer_share_a_codebook():
    tree = {"a": np.arange(20, dtype=np.float32), "b": -np.arange(30, dtype=np.float32), "w": np.eye(3, dtype=np.float32)}
    ones = {name: np.ones_like(leaf) for name, leaf in tree.items()}
    made = compress_layer(tree, Layer(("a", "b"), Values(bins=4)), ones, key=KEY)
    assert set(made) == {"a", "b"}
    np.testing.assert_array_equal(made["a"].codebook, made["b"].codebook)
    assert made["a"].group == made["b"].group is not None


def test_a_codebook_that_half_precision_would_change_stays(tmp_path):
    tree = {"w": np.float32([[1e-9, 3e5], [3e5, 1e-9]])}
    (made,) = compress_layer(tree, Layer(("w",), Values(bins=2)), {"w": np.ones((2, 2))}, key=KEY).values()
    assert made.codebook.dtype == np.float32
    np.testing.assert_allclose(made.decode(), tree["w"], rtol=1e-6)
    short = Clustered(made.indices, np.float16([[0.5], [1.5]]), (2, 2), np.float32)
    codec.save(tmp_path / "f", {"w": short})
    loaded = codec.load(tmp_path / "f")["w"]
    assert loaded.codebook.dtype == np.float16 and loaded.decode().dtype == np.float32


def test_the_method_compresses_what_it_names_and_nothing_else():
    method = Planned(layers=(Layer(("hidden/kernel",), Values(bins=4)), Layer(("head/kernel",), Blocks(d=2, bits=2))), draws=2)
    tree = method.compress(task(), key=KEY).tree
    kinds = {name: type(leaf).__name__ for name, leaf in named_leaves(tree).items()}
    assert kinds == {"head/kernel": "Clustered", "hidden/bias": "ndarray", "hidden/kernel": "Clustered"}
    assert named_leaves(tree)["hidden/bias"] is params()["hidden"]["bias"]
    again = method.compress(task(), key=KEY).tree
    assert all(map(np.array_equal, jax.tree.leaves(tree), jax.tree.leaves(again)))
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), decode(tree)))
    assert Planned(layers=()).compress(task(), key=KEY).tree is task().params


def test_without_outputs_all_weights_count_the_same():
    assert all((h == 1).all() for h in weights_importance(tiny_task(), key=KEY, draws=4).values())
    # An importance of zero everywhere says nothing.
    zero = {name: np.zeros_like(h) for name, h in importance().items()}
    one = {name: np.ones_like(h) for name, h in importance().items()}
    layer = Layer(("head/kernel",), Values(bins=3))
    a, b = (compress_layer(params(), layer, h, key=KEY)["head/kernel"] for h in (zero, one))
    np.testing.assert_array_equal(a.indices, b.indices)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Values(bins=0), "n_bins must be at least 1, got 0"),
        (lambda: Values(lmbda=-1), "lmbda must be finite and not negative, got -1"),
        (lambda: Blocks(d=0), "cv must be an integer of at least 1"),
        (lambda: Blocks(bits=17), "bits must be an integer of at least 0 and at most 16, got 17"),
        (lambda: Blocks(lmbda=float("nan")), "lmbda must be finite"),
        (lambda: Layer("conv/kernel", Values()), "a tuple of at least one leaf's name"),
        (lambda: Planned(layers=[Layer(("a",), Values())] * 2), "leaf 'a' is in two layers"),
        (lambda: Planned(layers=[Layer(("hiden/kernel",), Values())]).compress(task(), key=KEY), "did you mean 'hidden/kernel'"),
        (
            lambda: compress_layer(params(), Layer(("hidden/kernel", "head/kernel"), Blocks()), importance(), key=KEY),
            "leaves hidden/kernel, head/kernel share blocks",
        ),
        (
            lambda: compress_layer(params(), Layer(("head/kernel",), Blocks(d=4, bits=8)), importance(), key=KEY),
            "leaf 'head/kernel' has 15 blocks of 4, fewer than the 256",
        ),
        (lambda: BudgetConfig(exponents=(1.0, 1.0)), "exponents must be ascending"),
        (lambda: BudgetConfig(bins=(), blocks=()), "neither bins nor blocks are offered"),
        (lambda: BudgetConfig(refine=-1), "refine must not be negative"),
        (lambda: BudgetConfig(blocks=((2, 20),)), "bits must be an integer"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
