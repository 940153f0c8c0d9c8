"""The largest setting within a limit, where losses rise only on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from bqjax.sensitivity.limit import highest_within, rising_fit


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_the_fit_is_isotonic_regression(values):
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), np.array(values, np.float64))
    np.testing.assert_allclose(rising_fit(values), expected, atol=1e-9)


def search(lost, limit, **settings):
    asked = []

    def measure(x):
        asked.append(x)
        return lost(x)

    return highest_within(measure, limit, **{"low": 0.0, "high": 8.0, "steps": 6, "scan": 8, **settings}), asked


@pytest.mark.parametrize("scan", [0, 8])
def test_losses_that_rise_are_bisected(scan):
    found, asked = search(lambda x: x, 3.3, scan=scan)
    assert 3.3 - 8 / 2**6 < found <= 3.3
    assert len(asked) == len(set(asked)) <= 6 + scan


def test_the_scan_passes_a_loss_that_was_above_the_curve_by_chance():
    # Refused at 2 alone: by itself the bisection stops just below.
    def bump(x):
        return 1.5 if abs(x - 2.0) < 0.01 else 0.5 if x < 2.8 else 3.0

    assert search(bump, 1.0, scan=0)[0] < 2
    found, asked = search(bump, 1.0)
    assert 2.5 < found < 2.8 and max(asked[6:]) <= 3.2


def test_a_loss_that_was_below_the_curve_by_chance_is_not_taken():
    # The curve crosses the limit at 2; one measurement near the end of the scan happens to be low.
    def dip(x):
        return 0.9 if 2.9 < x < 2.99 else x / 2

    found, asked = search(dip, 1.0)
    assert any(2.9 < x < 2.99 for x in asked) and found == 2.0


@given(st.integers(0, 2**32 - 1))
def test_what_is_found_was_measured_within_the_limit_and_is_not_below_bisection(seed):
    noise = np.random.default_rng(seed)
    table = {}

    def noisy(x):
        return table.setdefault(x, x + noise.normal())

    alone = highest_within(noisy, 3.0, low=0.0, high=8.0, steps=5, scan=0)
    found = highest_within(noisy, 3.0, low=0.0, high=8.0, steps=5, scan=6)
    if alone is not None:
        assert found is not None and found >= alone
    if found is not None:
        assert table[found] <= 3.0 + 1e-6


def test_where_nothing_keeps_the_limit_nothing_is_found():
    assert search(lambda x: 5.0, 1.0)[0] is None


def test_where_everything_keeps_it_the_end_is_found():
    assert search(lambda x: 0.0, 1.0)[0] == 8.0
    assert search(lambda x: 0.0, 1.0, scan=0)[0] == 8.0 - 8 / 2**6
