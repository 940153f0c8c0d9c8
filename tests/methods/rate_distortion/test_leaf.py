"""One leaf, against brute force over all assignments and against plain rounding."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.methods.rate_distortion.feedback import compensated_values, descended_values, inverse_factor, ordered
from bqjax.methods.rate_distortion.leaf import diagonal_stats, leaf_stats, mean_curvature, quantize_rows, unbiased
from bqjax.methods.rate_distortion.levels import balanced_step, integer_grid
from bqjax.sensitivity.leaf_curvature import Layout, LeafCurvature


def moment_of(rng, d, mean=0.5):
    x = rng.normal(size=(40 * d, d)) @ rng.normal(size=(d, d)) + mean
    return (x.T @ x / len(x)).astype(np.float32), x.mean(0).astype(np.float32)


def curvature_of(seed, groups=1, rows=6, d=12):
    rng = np.random.default_rng(seed)
    moments, means = zip(*(moment_of(rng, d) for _ in range(groups)), strict=True)
    layout = Layout(shape=(groups, rows, d), view=(groups, rows, d), groups=(0,), rows=(1,), inputs=(2,))
    outputs = rng.uniform(0.5, 2, (groups, rows)).astype(np.float32)
    weights = rng.normal(size=(groups, rows, d)).astype(np.float32)
    return weights, LeafCurvature(np.stack(moments), np.stack(means), outputs, 10**9, False, layout)


def form(e, h, g):
    return float((g / 2 * np.einsum("ri,ij,rj->r", e, h, e)).sum())


def brute_force(w, h, g, values, bits, lmbda):
    """The least cost of each row over all assignments, summed."""
    total = 0.0
    every = np.array(list(itertools.product(range(len(values)), repeat=w.shape[1])))
    for row, weight in zip(w, g, strict=True):
        e = row - values[every]
        total += (weight / 2 * np.einsum("ni,ij,nj->n", e, h, e) + lmbda * bits[every].sum(1)).min()
    return total


@pytest.mark.parametrize("lmbda", [0.0, 0.2])
def test_feedback_is_near_the_best_of_all_assignments_and_better_than_rounding(lmbda):
    values, bits = np.float32([-1, 0, 1]), np.float32([2.5, 0.6, 2.5])
    costs = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        w, g = rng.normal(size=(2, 4)).astype(np.float32), rng.uniform(0.5, 2, 2).astype(np.float32)
        h = moment_of(rng, 4)[0]
        order, factor = inverse_factor(h, 1e-4)
        args = jnp.asarray(g), jnp.asarray(values), jnp.asarray(bits), lmbda
        first, _ = compensated_values(jnp.asarray(w), order, factor, *args)
        then, _ = descended_values(jnp.asarray(w), first, order, ordered(h, 1e-4)[1], *args, sweeps=3)
        nearest = np.abs(w[..., None] - values).argmin(-1)
        row = [form(w - values[i], h, g) + lmbda * bits[i].sum() for i in (np.asarray(first), np.asarray(then), nearest)]
        costs.append([*row, brute_force(w, h, g, values, bits, lmbda)])
        assert row[1] <= row[0] * (1 + 1e-3) + 1e-5 and costs[-1][3] <= row[1] * (1 + 1e-5) + 1e-6
    feedback, descended, rounded, best = np.array(costs).mean(0)
    assert descended < 1.25 * best
    assert feedback < 0.9 * rounded


def test_coordinate_descent_reports_its_error_and_never_rises():
    rng = np.random.default_rng(3)
    h = moment_of(rng, 20)[0]
    w, g = rng.normal(size=(30, 20)).astype(np.float32), rng.uniform(0.5, 2, 30).astype(np.float32)
    values, bits = np.linspace(-4, 4, 33, dtype=np.float32), np.abs(np.arange(33.0) - 16).astype(np.float32)
    order, moment = ordered(h, 0.01)
    damped = np.asarray(h, np.float64) + 0.01 * np.trace(h) / 20 * np.eye(20)
    start = jnp.asarray(np.abs(w[..., None] - values).argmin(-1))
    costs = []
    for sweeps in range(4):
        args = jnp.asarray(g), jnp.asarray(values), jnp.asarray(bits), 0.3
        index, error = descended_values(jnp.asarray(w), start, order, moment, *args, near=2, zero=16, sweeps=sweeps)
        e = w.astype(np.float64) - values[np.asarray(index)]
        np.testing.assert_allclose(error, np.einsum("ri,ij,rj->r", e, damped, e), rtol=1e-3)
        costs.append(form(e, damped, g) + 0.3 * bits[np.asarray(index)].sum())
    assert (np.diff(costs) <= 1e-3).all() and costs[-1] < 0.9 * costs[0]


def test_levels_nearby_and_blocks_choose_what_all_levels_choose():
    rng = np.random.default_rng(4)
    h = moment_of(rng, 50)[0]
    w, g = rng.normal(size=(8, 50)).astype(np.float32), jnp.ones(8)
    values, bits = jnp.linspace(-6, 6, 65), jnp.abs(jnp.arange(65.0) - 32) / 4 + 1
    order, factor = inverse_factor(h, 0.05)
    whole, error = compensated_values(w, order, factor, g, values, bits, 0.05)
    near, _ = compensated_values(w, order, factor, g, values, bits, 0.05, near=3, zero=32)
    blocked, blocked_error = compensated_values(w, order, factor, g, values, bits, 0.05, near=3, zero=32, block=16)
    assert (np.asarray(near) == np.asarray(whole)).mean() > 0.98
    assert (np.asarray(blocked) == np.asarray(near)).mean() > 0.9  # rounding flips a tie, and later weights follow
    np.testing.assert_allclose(error.sum(), blocked_error.sum(), rtol=0.05)


def test_feedback_lowers_the_quadratic_form_of_rounding():
    better = []
    for seed in range(12):
        weights, curvature = curvature_of(seed, rows=40, d=24)
        found = quantize_rows(weights, leaf_stats(curvature, damping=1e-3), 0.02)
        values = found.levels[found.indices]
        rounded = np.rint(weights / found.levels[found.zero + 1]) * found.levels[found.zero + 1]
        h, g = curvature.inputs[0].astype(np.float64), curvature.outputs[0]
        better.append(form((weights - values)[0], h, g) < form((weights - rounded)[0], h, g))
    assert all(better)


def test_unbiased_levels_leave_nothing_of_the_error_along_the_outputs():
    weights, curvature = curvature_of(3, groups=2, rows=20, d=16)
    stats = leaf_stats(curvature, damping=1e-6)
    before = quantize_rows(weights, stats, 0.2)
    after = unbiased(before, weights, stats)
    assert (after.indices == before.indices).all() and (after.levels[after.zero] == 0) and after.bits == before.bits
    left, cost = {}, {}
    for name, found in (("before", before), ("after", after)):
        along = total = power = 0.0
        for h, g, w, i in zip(curvature.inputs, curvature.outputs, weights, found.indices, strict=True):
            x = np.linalg.cholesky(h.astype(np.float64)).T  # inputs of that second moment
            y, e = x @ w.T, x @ (w - found.levels[i]).T
            along += (g * y * e).sum()
            power += (g * y * y).sum()
            total += (g * e * e).sum() / 2
        left[name], cost[name] = along / power, total
    assert left["before"] > 0.02 and abs(left["after"]) < 1e-3
    assert after.distortion == pytest.approx(cost["after"], rel=0.05) and cost["before"] < cost["after"] < 1.2 * cost["before"]


def test_at_lmbda_zero_weights_come_back():
    weights, curvature = curvature_of(0, groups=2)
    found = quantize_rows(weights, leaf_stats(curvature), 0.0)
    assert np.abs(found.levels[found.indices] - weights).max() <= 2e-4 * np.abs(weights).max()


def test_the_step_is_in_balance_and_thousands_of_levels_clip_nothing():
    weights, curvature = curvature_of(1)
    weights[0, 0, 0] = 100.0
    stats = leaf_stats(curvature)
    lmbda = 1e-5
    found = quantize_rows(weights, stats, lmbda, step_scales=(1.0,))
    step = found.levels[found.zero + 1]
    assert step == pytest.approx(balanced_step(mean_curvature(stats), lmbda), rel=1e-4)
    assert len(found.levels) > 4096 and abs(found.levels[found.indices[0, 0, 0]] - 100) < 10 * step


def test_a_higher_lmbda_trades_distortion_for_bits():
    weights, curvature = curvature_of(2, groups=2, rows=20, d=16)
    found = [quantize_rows(weights, leaf_stats(curvature), lmbda) for lmbda in (1e-3, 1e-2, 1e-1, 1e6)]
    assert (np.diff([f.bits for f in found]) < 0).all() and (np.diff([f.distortion for f in found]) > 0).all()
    assert (found[-1].indices == found[-1].zero).all()


def test_importance_alone_is_entropy_constrained_rounding():
    rng = np.random.default_rng(5)
    w, h = rng.normal(size=(1, 3000, 1)).astype(np.float32), rng.uniform(0.5, 2, (3000,))
    found = quantize_rows(w, diagonal_stats(h), 0.01)
    e = (w - found.levels[found.indices]).reshape(-1)
    assert found.distortion == pytest.approx((h / 2 * e**2).sum(), rel=0.05)
    finer = np.abs(e).reshape(-1) <= found.levels[found.zero + 1]
    assert finer.mean() > 0.95


def test_weights_beyond_the_levels_that_may_be_taken_take_the_last_of_them():
    rng = np.random.default_rng(8)
    h = moment_of(rng, 12)[0]
    # As integer codes: far beyond the range on one side, which errors of other weights push some of them to.
    w, g = np.rint(rng.normal(20, 25, (40, 12))).astype(np.float32), rng.uniform(0.5, 2, 40).astype(np.float32)
    grid = integer_grid(-30, 40, 3.0)
    bits = grid.only_taken(np.abs(np.arange(len(grid.levels)) - grid.zero) / 4 + 1).astype(np.float32)
    order, factor = inverse_factor(h, 0.01)
    args = order, factor, jnp.asarray(g), jnp.asarray(grid.levels), jnp.asarray(bits)
    taken = slice(grid.first, grid.last + 1)
    few = order, factor, jnp.asarray(g), jnp.asarray(grid.levels[taken]), jnp.asarray(bits[taken])
    for lmbda in (0.0, 2.0):
        near = compensated_values(jnp.asarray(w), *args, lmbda, near=2, zero=grid.zero)[0]
        every = compensated_values(jnp.asarray(w), *few, lmbda)[0] + grid.first
        assert (np.asarray(near) == np.asarray(every)).mean() > 0.999
        index, _ = descended_values(
            jnp.asarray(w), near, order, ordered(h, 0.01)[1], *args[2:], lmbda, near=2, zero=grid.zero, sweeps=2
        )
        for found in map(np.asarray, (near, index)):
            assert found.min() >= grid.first and found.max() == grid.last
