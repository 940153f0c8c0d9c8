"""Grids, costs of indices, and levels refitted by least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.methods.rate_distortion.levels import MOST_LEVELS, even_grid, level_bits, refitted


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 10))
def test_grids_hold_zero_and_reach_beyond_the_largest(largest, step):
    levels, zero = even_grid(largest, step)
    assert levels[zero] == 0 and len(levels) <= MOST_LEVELS and len(levels) & (len(levels) - 1) == 0
    assert levels[0] < -largest and levels[-1] > largest


def test_costs_are_those_of_the_shares_where_there_are_many_and_finite_where_there_are_none():
    counts = np.array([0, 0, 0, 1000, 8000, 1000, 3, 0])
    bits = level_bits(counts, 4)
    np.testing.assert_allclose(bits[3:6], -np.log2(counts[3:6] / counts.sum()), atol=0.02)
    assert np.isfinite(bits).all() and bits[0] > bits[1] > bits[2] > 8 and bits[7] > bits[6]
    assert np.exp2(-bits).sum() == pytest.approx(1, abs=1e-9)
    assert np.isfinite(level_bits(np.eye(1, 4096, 9)[0], 9)).all()


@pytest.mark.parametrize("seed", range(5))
def test_refitted_levels_are_least_squares(seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(2, 6, 9))
    moment = np.stack([x.T @ x for x in rng.normal(size=(2, 30, 9))])
    importance = rng.uniform(0.5, 2, (2, 6))
    levels = np.float32([-2, -1, 0, 1, 2])
    index = np.abs(weights[..., None] - levels).argmin(-1)
    new = refitted(weights, index, moment, importance, levels, 2)

    def cost(values):
        e = weights - values[index]
        return (importance * np.einsum("gri,gij,grj->gr", e, moment, e)).sum()

    assert new[2] == 0 and cost(new) <= cost(levels)
    for i in (0, 1, 3, 4):
        for by in (-0.02, 0.02):
            moved = new.copy()
            moved[i] += by
            assert cost(moved) >= cost(new)
