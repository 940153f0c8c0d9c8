"""Every query on sorted weights, against NumPy on the weights as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st

from bqjax.methods.bins.sorted_weights import SortedWeights

F32 = np.float32
TINY, BIG = float(np.finfo(F32).smallest_subnormal), float(np.finfo(F32).max)
# Duplicates, neighbours one denormal apart, and outliers beside which everything else vanishes.
hard = st.sampled_from([0.0, 1.0, -1.0, 1.0 + 2.0**-23, TINY, 2 * TINY, -TINY, 1e-8, 2e-8, 1e30, -1e30, BIG, -BIG])
values = st.lists(st.one_of(hard, st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1, max_size=40)
bound = st.one_of(st.just(-math.inf), st.just(math.inf), hard, st.floats(width=32, allow_nan=False))


def inside(weights, lower, upper):
    w = np.array(weights, F32)
    return w[(w >= F32(lower)) & (w < F32(upper))]


@given(values, bound, bound)
@example([-1e30, 1e-8, 2e-8, 1.0, 2.0], 0.0, 0.5)
@example([-1e30, -1.0, -0.5, 0.0, 1.0, 2.0, 3.0], -2.0, 0.0)
@example([-BIG, BIG, BIG], -math.inf, math.inf)
def test_count_mean_and_extremes_of_any_bin(weights, a, b):
    lower, upper = min(a, b), max(a, b)
    expected = inside(weights, lower, upper)
    ours = SortedWeights([np.array(weights, F32)])
    assert ours.count(lower, upper) == expected.size
    if expected.size:
        low, high = float(expected.min()), float(expected.max())
        assert ours.extremes(lower, upper) == (low, high)
        mean = ours.mean(lower, upper)
        assert low <= mean <= high
        exact = math.fsum(map(float, expected)) / expected.size
        # Within a float32 rounding of the largest weight of the bin, whatever lies outside the bin.
        assert abs(mean - exact) <= 2.0**-24 * max(abs(low), abs(high)) + TINY


def test_the_mean_of_equal_weights_is_exact():
    ours = SortedWeights([np.full(1000, 0.1, F32), np.array([5.0, -7.0], F32)])
    assert ours.mean(0.0, 1.0) == float(F32(0.1))


def test_the_mean_of_many_weights_is_that_in_float64():
    rng = np.random.default_rng(0)
    w = (rng.normal(size=100_000) * 1e-3 + 5).astype(F32)
    ours = SortedWeights([w[:7].reshape(7, 1), w[7:]])
    for lower, upper in [(-math.inf, math.inf), (5.0, math.inf), (4.999, 5.0005), (-math.inf, 4.998)]:
        expected = inside(w, lower, upper).astype(np.float64).mean()
        assert ours.mean(lower, upper) == pytest.approx(expected, abs=1e-11)


@given(values, st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=6, unique=True))
def test_counts_and_entropy_of_bins(weights, edges):
    edges = np.sort(np.array(edges, F32))
    w = np.array(weights, F32)
    expected = np.bincount(np.digitize(w, edges), minlength=len(edges) + 1)
    ours = SortedWeights([w])
    assert ours.size == w.size
    np.testing.assert_array_equal(ours.counts(edges), expected)
    assert ours.entropy(edges) == pytest.approx(scipy.stats.entropy(expected, base=2), abs=1e-12)


@given(values, bound, bound)
@example([-BIG, BIG], -math.inf, math.inf)
@example([TINY, 2 * TINY], -math.inf, math.inf)
@example([0.0, TINY], 0.0, math.inf)
@example([1.0, 1.0 + 2.0**-23], 1.0, 2.0)
@example([0.9, 0.95], -1.0, 1.0)
def test_a_split_leaves_weights_on_both_sides_or_they_are_all_equal(weights, a, b):
    lower, upper = min(a, b), max(a, b)
    w = inside(weights, lower, upper)
    edge = SortedWeights([np.array(weights, F32)]).split(lower, upper)
    if len(np.unique(w)) < 2:
        assert edge is None
    else:
        assert edge is not None
        assert float(F32(edge)) == edge
        assert 0 < (w < edge).sum() < w.size


@given(values)
def test_splitting_on_and_on_ends_with_one_bin_for_each_distinct_value(weights):
    w = np.array(weights, F32)
    ours = SortedWeights([w])
    todo, done = [(-math.inf, math.inf)], []
    while todo:
        lower, upper = todo.pop()
        edge = ours.split(lower, upper)
        if edge is None:
            done.append((lower, upper))
        else:
            assert lower < edge < upper
            todo += [(lower, edge), (edge, upper)]
    assert sorted(ours.extremes(*bin)[0] for bin in done) == np.unique(w).tolist()


@pytest.mark.parametrize(
    ("lower", "upper", "edge"),
    [
        (-2.0, 2.0, 0.0),  # an inner bin: between its edges
        (-math.inf, 2.0, -4.0),  # an outer bin: between its inner edge and its extreme weight
        (-2.0, math.inf, 2.0),
        (-math.inf, math.inf, -2.0),  # the only bin: between its extremes
        (0.5, 6.0, 1.25),  # halfway between the edges one half would be empty: between the bin's own extremes
        (5.0, 6.0, None),
    ],
)
def test_where_a_bin_is_split(lower, upper, edge):
    ours = SortedWeights([np.array([-10, -1.5, 1.0, 1.5, 1.5, 6.0], F32)])
    assert ours.split(lower, upper) == edge
    # Weights equal to an edge lie above it, so those at the upper edge are not in the bin.
    assert ours.count(1.0, 6.0) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges_are_values_of_the_weights_dtype(dtype):
    w = np.array([0.1, 0.2, 0.4], dtype)
    edge = SortedWeights([w]).split(-math.inf, math.inf)
    assert edge == float(dtype(0.5 * w[0] + 0.5 * w[2]))
