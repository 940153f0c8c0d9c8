"""Rows with steps of their own: which exponents, and what they save on a network whose outputs matter unequally."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax import codec, decode
from bqjax.core.leaves import Clustered, Scaled
from bqjax.methods.rate_distortion import SolverConfig, bin_and_quant_rd
from bqjax.methods.rate_distortion.row_steps import step_exponents, to_units
from bqjax.methods.rate_distortion.solver import prepare, removal_distortion
from bqjax.sensitivity.curvature import output_curvature
from bqjax.sensitivity.leaf_curvature import Layout

LMBDA = 1e-4


def outputs(params, x):
    hidden = jnp.tanh(x @ params["first"] + params["bias"][None, :])
    return hidden @ params["last"]


@pytest.fixture(scope="module")
def problem():
    """The outputs of the first layer matter by their rows in the last one, which differ by powers of two."""
    rng = np.random.default_rng(0)
    last = rng.normal(size=(96, 6)) * np.exp2(rng.integers(-4, 4, (96, 1)))
    params = {"first": rng.normal(size=(48, 96)) / 7, "bias": rng.normal(size=96) / 5, "last": last}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    x = jnp.asarray(rng.normal(size=(512, 48)), jnp.float32)
    return params, x, output_curvature(outputs, params, [x], key=jax.random.key(0), draws=8)


def test_rows_that_matter_unequally_take_fewer_bits_at_less_error(problem, tmp_path):
    params, x, curvature = problem
    costs = {}
    for row_steps in (False, True):
        tree = bin_and_quant_rd(params, curvature, lmbda=LMBDA, config=SolverConfig(row_steps=row_steps))
        info = codec.save(tmp_path / f"{row_steps}.bq.safetensors", tree)
        change = outputs(decode(codec.load(info.path)), x) - outputs(params, x)
        costs[row_steps] = float(jnp.square(change).sum(1).mean()) / 2 + LMBDA * 8 * info.file_bytes
        assert type(tree["first"]) is (Scaled if row_steps else Clustered)
        assert type(tree["last"]) is Clustered  # six outputs of one importance
    # Bits that are saved at the same loss: a tenth of those of the first layer at least.
    assert costs[True] < costs[False] - 0.1 * LMBDA * 8 * info.leaves[1].bytes


def test_exponents_follow_importance_and_units_change_nothing_else(problem):
    params, _, curvature = problem
    one, own = (prepare(params, curvature, config=SolverConfig(row_steps=row_steps)) for row_steps in (False, True))
    exponents = own.exponents["first"]
    assert (list(own.exponents), exponents.shape) == (["first"], (1, 96))
    g = np.asarray(one.stats["first"].importance)[0]
    assert np.ptp(np.log2(np.asarray(own.stats["first"].importance)[0])) <= 2.001 < np.ptp(np.log2(g))
    assert (np.diff(exponents[0][np.argsort(g)]) <= 0).all()
    np.testing.assert_array_equal(to_units(own.layouts["first"].to_leaf(own.rows["first"]), -exponents), params["first"])
    for a, b in zip(removal_distortion(one), removal_distortion(own), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_means_are_taken_up_as_without_them(problem):
    params, _, curvature = problem
    tree = bin_and_quant_rd(params, curvature, lmbda=LMBDA, config=SolverConfig(vectors=False))
    mean = np.asarray(curvature["first"].mean)[0]
    expected = np.asarray(params["bias"]) + mean @ (np.asarray(params["first"]) - np.asarray(decode(tree)["first"]))
    np.testing.assert_allclose(tree["bias"], expected, atol=1e-6)
    assert np.abs(expected - params["bias"]).max() > 1e-4


def test_short_types_and_equal_rows(problem):
    params, x, _ = problem
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    curvature = output_curvature(outputs, short, [x], key=jax.random.key(0))
    tree = bin_and_quant_rd(short, curvature, lmbda=LMBDA)
    tree["first"].validate()
    assert (tree["first"].dtype, decode(tree)["first"].dtype) == (jnp.bfloat16, jnp.bfloat16)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(shape=(3, 3, 8, 64), view=(3, 3, 8, 64), groups=(), rows=(3,), inputs=(0, 1, 2)), (1, 1, 1, 64)),
        (Layout(shape=(300, 8, 8), view=(300, 8, 8), groups=(), rows=(1, 2), inputs=(0,)), (1, 8, 8)),
        (Layout(shape=(4, 80, 16), view=(4, 80, 16), groups=(0,), rows=(2,), inputs=(1,)), (4, 1, 16)),
        (Layout(shape=(64, 250), view=(64, 250), groups=(), rows=(0,), inputs=(1,), width=100), (64, 1)),
    ],
)
def test_exponents_of_every_layout_broadcast_with_the_leaf(layout, shape):
    rng = np.random.default_rng(0)
    importance = np.exp2(rng.normal(0, 3, layout.rows_shape[:2]))
    exponents = step_exponents(layout, importance)
    assert exponents.shape == shape
    spread = [np.ptp(np.log2(layout.to_rows(np.broadcast_to(x, layout.shape))[..., 0])) for x in (np.exp2(-2.0 * exponents),)]
    assert spread[0] > 4
    assert step_exponents(layout, np.ones(layout.rows_shape[:2])) is None


def test_what_has_no_rows_of_its_own_has_one_step():
    parts = Layout(shape=(12, 40), view=(2, 6, 40), groups=(0,), rows=(1,), inputs=(2,))
    assert step_exponents(parts, np.exp2(np.arange(12.0)).reshape(2, 6)) is None
    # Rows of three weights do not pay for an exponent each.
    short = Layout(shape=(16, 3), view=(16, 3), groups=(), rows=(0,), inputs=(1,))
    assert step_exponents(short, np.exp2(np.arange(16.0) % 3)[None]) is None
