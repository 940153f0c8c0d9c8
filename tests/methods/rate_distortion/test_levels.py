"""Grids, and what indices into them cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.methods.rate_distortion.levels import MOST_LEVELS, even_grid, level_bits


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
