"""A layer's integer codes onto an even grid."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.methods.rate_distortion.leaf import mean_curvature
from bqjax.methods.rate_distortion.levels import balanced_step, integer_grid
from bqjax.tflite.codes.grid import quantize_layer, quantize_layer_by_output, quantize_layer_on, row_classes
from bqjax.tflite.codes.layer_stats import Measured, layer_stats


def layer(groups=1, rows=40, d=30, seed=0, zero_point=7):
    rng = np.random.default_rng(seed)
    codes = np.clip(np.round(rng.normal(zero_point, 25, (groups, rows, d))), -128, 127).astype(np.int64)
    x = rng.normal(size=(groups, 400, d)) @ rng.normal(size=(d, d)) / d + 0.5
    second, mean = np.einsum("gpi,gpj->gij", x, x) / 400, x.mean(1)
    importance = np.broadcast_to(rng.uniform(0.5, 2, (groups, rows, 1)), codes.shape)
    stats = layer_stats(Measured(second.astype(np.float32), mean.astype(np.float32), 10**9, importance))
    return codes, zero_point, stats, second - mean[:, :, None] * mean[:, None, :]


def lmbda_for(step, stats):
    return step**2 * mean_curvature(stats) * np.log(2) / 12


@pytest.mark.parametrize("groups", [1, 5])
def test_distortion_and_bits_are_those_of_the_codes(groups):
    codes, zero_point, stats, moment = layer(groups)
    found = quantize_layer(codes, zero_point, stats, lmbda_for(12.0, stats))
    e = codes - found.codes
    g = np.asarray(stats.importance, np.float64)
    moment = moment + 0.01 * np.trace(moment, axis1=1, axis2=2)[:, None, None] / moment.shape[-1] * np.eye(moment.shape[-1])
    assert found.distortion == pytest.approx((g / 2 * np.einsum("gri,gij,grj->gr", e, moment, e)).sum(), rel=1e-2)
    share = np.unique(found.codes, return_counts=True)[1] / codes.size
    assert found.bits == pytest.approx(-codes.size * (share * np.log2(share)).sum(), rel=1e-6)
    assert found.steps == pytest.approx((12.0,))
    grid = integer_grid(codes.min() - zero_point, codes.max() - zero_point, 12.0)
    assert set(np.unique(found.codes)) <= set(grid.levels[grid.first : grid.last + 1] + zero_point)


def test_a_lmbda_too_low_to_give_up_a_code_leaves_the_layer():
    codes, zero_point, stats, _ = layer()
    assert quantize_layer(codes, zero_point, stats, lmbda_for(0.9, stats)) is None
    assert quantize_layer(codes, zero_point, stats, 0.0) is None


def test_a_lmbda_above_everything_leaves_the_zero_point_alone():
    codes, zero_point, stats, _ = layer()
    found = quantize_layer(codes, zero_point, stats, lmbda_for(1e6, stats))
    assert np.unique(found.codes).tolist() == [zero_point] and found.bits == 0


def test_a_higher_lmbda_trades_distortion_for_bits():
    codes, zero_point, stats, _ = layer()
    found = [quantize_layer(codes, zero_point, stats, lmbda_for(step, stats)) for step in (2.0, 5.0, 15.0, 40.0)]
    assert (np.diff([f.bits for f in found]) < 0).all() and (np.diff([f.distortion for f in found]) > 0).all()


@pytest.mark.parametrize("lmbda", [8e2, 1e3])
def test_rows_that_nothing_reads_do_not_set_the_step_of_the_others(lmbda):
    """Nine of ten rows of a layer in front of a pruned one matter not at all: the step of the geometric mean makes all codes 0."""
    codes, zero_point, stats, _ = layer(rows=60, d=12)
    importance = np.where(np.arange(60) % 10, 1e-9, 1e4)
    stats = stats._replace(importance=jnp.asarray(importance[None], jnp.float32))
    balanced = balanced_step(mean_curvature(stats), lmbda)
    assert (quantize_layer_on(codes, zero_point, stats, lmbda, step=balanced).codes == zero_point).all()
    found = quantize_layer(codes, zero_point, stats, lmbda)
    assert found.distortion <= 8 * lmbda * codes.size
    assert np.unique(found.codes[:, ::10]).size > 1 and found.steps[0] < balanced / 2


def test_compensation_costs_less_at_the_same_lmbda():
    codes, zero_point, stats, _ = layer()
    lmbda = lmbda_for(15.0, stats)
    on, off = (quantize_layer(codes, zero_point, stats, lmbda, compensate=c) for c in (True, False))
    # Without it, `distortion` is a sum over weights that knows nothing of how their errors add up: compare outputs.
    moment = np.asarray(layer()[3])

    def loss(found):
        e = codes - found.codes
        return (
            np.asarray(stats.importance, np.float64) / 2 * np.einsum("gri,gij,grj->gr", e, moment, e)
        ).sum() + lmbda * found.bits

    assert loss(on) < loss(off)


def test_small_classes_join_their_neighbours():
    stats = layer(rows=64)[2]._replace(importance=jnp.asarray(2.0 ** np.arange(64)[None], jnp.float32))
    classes = row_classes(stats, min_rows=20)
    assert classes.min() == 0 and np.bincount(classes[0]).min() >= 20 and (np.diff(classes[0]) >= 0).all()
    assert row_classes(stats, min_rows=65).max() == 0


@pytest.mark.parametrize(("spread", "several"), [(1000.0, True), (1.05, False)])
def test_outputs_that_matter_more_get_a_finer_grid_where_that_pays(spread, several):
    codes, zero_point, stats, moment = layer(rows=200)
    importance = np.where(np.arange(200) < 100, 1.0, spread)
    stats = stats._replace(importance=jnp.asarray(importance[None], jnp.float32))
    lmbda = lmbda_for(12.0, stats)
    found = quantize_layer_by_output(codes, zero_point, stats, lmbda)
    together = quantize_layer(codes, zero_point, stats, lmbda)

    def cost(layer):
        e = codes - layer.codes
        return (importance / 2 * np.einsum("gri,gij,grj->gr", e, moment, e)).sum() + lmbda * layer.bits

    if several:
        assert (found.classes[0, :100] == 0).all() and (found.classes[0, 100:] > 0).all()
        assert found.steps[0] > 4 * found.steps[-1]
        assert cost(found) < 0.8 * cost(together)
    else:
        np.testing.assert_array_equal(found.codes, together.codes)
        assert found.classes.max() == 0
    assert quantize_layer_by_output(codes, zero_point, stats, 0.0) is None
