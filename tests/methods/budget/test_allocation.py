"""Planning on curves, against every plan that there is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.methods.budget.allocation import Option, hull, plan_for_distortion, plan_for_size, plans, total

OPTION = st.builds(Option, st.integers(0, 50).map(float), st.integers(-3, 50).map(float))
CURVES = st.dictionaries(st.sampled_from("abcd"), st.lists(OPTION, min_size=1, max_size=5), min_size=1)


def every_plan(curves):
    return [dict(zip(curves, choice, strict=True)) for choice in itertools.product(*(range(len(o)) for o in curves.values()))]


@given(st.lists(OPTION, min_size=1, max_size=9))
def test_the_hull_has_the_best_option_for_every_weight_of_a_byte(options):
    kept = hull(options)
    bytes_, distortions = [options[i].bytes for i in kept], [options[i].distortion for i in kept]
    assert bytes_ == sorted(set(bytes_)) and distortions == sorted(set(distortions), reverse=True)
    assert distortions[-1] == min(o.distortion for o in options)
    assert bytes_[0] == min(o.bytes for o in options)
    for weight in (0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 100.0):
        cost = [o.distortion + weight * o.bytes for o in options]
        assert min(cost[i] for i in kept) == pytest.approx(min(cost))


@given(CURVES)
def test_no_plan_beats_one_of_the_path(curves):
    everything = [total(curves, plan) for plan in every_plan(curves)]
    for plan in plans(curves):
        mine = total(curves, plan)
        assert not [o for o in everything if o.bytes <= mine.bytes and o.distortion < mine.distortion - 1e-9]


@given(CURVES)
def test_the_path_goes_from_the_smallest_to_the_least_distortion_in_single_steps(curves):
    path = plans(curves)
    sums = [total(curves, plan) for plan in path]
    everything = [total(curves, plan) for plan in every_plan(curves)]
    assert sums[0].bytes == min(o.bytes for o in everything)
    assert sums[-1].distortion == min(o.distortion for o in everything)
    for (a, b), (p, q) in zip(itertools.pairwise(sums), itertools.pairwise(path), strict=True):
        assert a.bytes < b.bytes and a.distortion > b.distortion
        assert sum(p[u] != q[u] for u in curves) == 1


@given(CURVES, st.integers(0, 120))
def test_a_plan_for_a_size_is_within_one_step_of_the_best(curves, target):
    possible = [o for plan in every_plan(curves) if (o := total(curves, plan)).bytes <= target]
    if not possible:
        with pytest.raises(ValueError, match="the smallest takes"):
            plan_for_size(curves, target)
        return
    mine, best = total(curves, plan_for_size(curves, target)), min(o.distortion for o in possible)
    assert mine.bytes <= target
    # Everett: the loss against the optimum is less than the step that did not fit.
    sums = [total(curves, plan).distortion for plan in plans(curves)]
    largest = max((a - b for a, b in itertools.pairwise(sums)), default=0.0)
    assert best - 1e-9 <= mine.distortion <= best + largest + 1e-9


@given(CURVES, st.integers(-12, 200))
def test_a_plan_for_a_distortion_is_within_one_step_of_the_smallest(curves, limit):
    possible = [o for plan in every_plan(curves) if (o := total(curves, plan)).distortion <= limit]
    if not possible:
        with pytest.raises(ValueError, match="the least is"):
            plan_for_distortion(curves, limit)
        return
    mine, best = total(curves, plan_for_distortion(curves, limit)), min(o.bytes for o in possible)
    assert mine.distortion <= limit + 1e-9
    sums = [total(curves, plan).bytes for plan in plans(curves)]
    largest = max((b - a for a, b in itertools.pairwise(sums)), default=0.0)
    assert best <= mine.bytes <= best + largest


def test_what_is_left_is_filled_off_the_hull():
    # (6, 5) is above the line from (0, 10) to (10, 0), and the best of what fits into 8 bytes.
    curves = {"a": [Option(0, 10), Option(6, 5), Option(10, 0)]}
    assert hull(curves["a"]) == [0, 2]
    assert plan_for_size(curves, 8) == {"a": 1}
    assert plan_for_distortion({"a": [Option(0, 10), Option(6, 5), Option(10, 0)]}, 6) == {"a": 1}


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "no unit has options"),
        ({"a/kernel": []}, "unit 'a/kernel' has no options"),
        ({"a": [Option(1, float("nan"))]}, "unit 'a' has an option of 1 bytes and distortion nan"),
        ({"a": [Option(float("inf"), 0)]}, "both must be finite"),
        ({"a": [Option(-1, 0)]}, "unit 'a' has an option of -1 bytes"),
    ],
)
def test_curves_that_cannot_be_planned_on(curves, message):
    with pytest.raises(ValueError, match=message):
        plans(curves)
