"""Grids, and what indices into them cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.methods.rate_distortion.levels import MOST_LEVELS, even_grid, integer_grid, level_bits


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 10))
def test_grids_hold_zero_and_reach_beyond_the_largest(largest, step):
    grid = even_grid(largest, step)
    assert grid.levels[grid.zero] == 0 and len(grid.levels) <= MOST_LEVELS and (grid.first, grid.last) == (0, len(grid.levels) - 1)
    assert grid.levels[0] < -largest and grid.levels[-1] > largest


@given(st.floats(1, 100), st.integers(-255, 0), st.integers(0, 255))
def test_integer_grids_are_even_to_one_half_and_fill_their_range(step, low, high):
    grid = integer_grid(low, high, step)
    taken = grid.levels[grid.first : grid.last + 1]
    assert grid.levels[grid.zero] == 0 and grid.first <= grid.zero <= grid.last
    assert (grid.levels == np.rint(grid.levels)).all() and taken.min() >= low and taken.max() <= high
    np.testing.assert_array_less(np.abs(grid.levels - step * (np.arange(len(grid.levels)) - grid.zero)), 0.5 + 1e-4)
    assert taken.min() - low < step + 1 and high - taken.max() < step + 1
    weights = np.arange(low, high + 1)
    best = np.abs(weights[:, None] - taken).min(1)
    assert (np.abs(weights - grid.levels[grid.nearest(weights)]) <= best + 1).all()
    np.testing.assert_array_equal(np.isfinite(grid.only_taken(np.zeros(len(grid.levels)))), np.isin(grid.levels, taken))


def test_costs_are_those_of_the_shares_where_there_are_many_and_finite_where_there_are_none():
    counts = np.array([0, 0, 0, 1000, 8000, 1000, 3, 0])
    bits = level_bits(counts, 4)
    np.testing.assert_allclose(bits[3:6], -np.log2(counts[3:6] / counts.sum()), atol=0.02)
    assert np.isfinite(bits).all() and bits[0] > bits[1] > bits[2] > 8 and bits[7] > bits[6]
    assert np.exp2(-bits).sum() == pytest.approx(1, abs=1e-9)
    assert np.isfinite(level_bits(np.eye(1, 4096, 9)[0], 9)).all()
