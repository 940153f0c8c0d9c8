"""Races between simulated candidates: right as often as they say, at a part of the full sweep's cost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bqjax.sensitivity.racing import Race, looks, parse_until
from bqjax.sensitivity.rounds import comparable, run_rounds, weighted_mean
from bqjax.sensitivity.sweep_rows import Candidate


def candidates(n, tags=None):
    return [Candidate(leaf=f"l{i}", tags=tags or {}) for i in range(n)]


def raced(means, until, confidence=0.95, most=320, seed=0, spread=1.0, out=frozenset(), tolerance=0.0):
    rng = np.random.default_rng(seed)
    race, scored = Race(candidates(len(means)), until, confidence, most, tolerance, out=out), np.zeros(len(means), int)

    def score(places, first, last):
        race.weights += [1.0] * (last - first)
        shared = rng.normal(size=last - first)  # easy and hard blocks, the same for all
        for i in places:
            scored[i] += last - first
            race.drops[i] += list(means[i] + shared + spread * rng.normal(size=last - first))

    run_rounds(race, score)
    return race, scored


def test_a_race_for_the_top_is_right_and_cheap():
    means = np.array([0.0, 0.1, 5.0, 0.2, 4.0, 0.3, 6.0, -0.2, 0.1, 0.0])
    wrong = 0
    for seed in range(40):
        race, scored = raced(means, "top3", seed=seed)
        record = race.record(scored.sum(), 320 * len(means))
        assert record.settled and record.open == ()
        wrong += set(record.order[0][:3]) != {2, 4, 6}
        assert scored.sum() < 0.1 * 320 * len(means)
    assert wrong == 0


def test_a_race_for_the_order_says_what_it_could_not_tell():
    race, scored = raced(np.array([0.0, 2.0, 4.0, 4.0]), "rank")
    record = race.record(scored.sum(), 1280)
    assert not record.settled and record.open == ((2, 3),)
    assert set(record.order[0][:2]) == {2, 3} and record.order[0][2:] == (1, 0)
    assert record.reached == "5 of 6 pairs are in order; the rest differ by less than can be told"
    assert scored[2] == scored[3] == 320 and scored[0] < 100  # settled: scored no more
    race, scored = raced(np.array([0.0, 3.0, 6.0]), "rank")
    assert race.record(scored.sum(), 960).settled and race.record(0, 1).reached == "3 of 3 pairs are in order"


def test_equal_candidates_are_told_apart_no_more_often_than_the_confidence_allows():
    errors = sum(bool(raced(np.zeros(4), "rank", confidence=0.8, most=64, seed=seed)[0]._ahead.any()) for seed in range(100))
    assert errors <= 20


def test_what_differs_by_less_than_the_tolerance_counts_as_equal():
    means = np.array([0.0, 4.0, 4.1, 4.0, 0.2])
    for until, order in (("top2", {1, 2, 3}), ("rank", {0, 1, 2, 3, 4})):
        exact, all_scored = raced(means, until)
        about, scored = raced(means, until, tolerance=1.0)
        assert not exact.record(0, 1).settled and about.record(0, 1).settled and about.record(0, 1).open == ()
        assert set(about.record(0, 1).order[0][:2]) <= order and scored.sum() < 0.6 * all_scored.sum()
        assert set(about.record(0, 1).order[0][3:]) == {0, 4}
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="a tolerance must be finite and not negative"):
            raced(means, "rank", tolerance=tolerance)


def test_a_race_until_a_standard_error():
    race, scored = raced(np.zeros(3), 0.2)
    assert race.record(0, 1).settled and max(race.error(i) for i in range(3)) <= 0.2
    # Two deviations of 1, one shared: a variance of 2, an error of 0.2 after about 50 rounds.
    assert all(34 <= n <= 80 for n in scored)
    race, _ = raced(np.zeros(3), 0.001, most=20)
    assert "not 0.001: there are no more draws" in race.record(0, 1).reached and not race.record(0, 1).settled


def test_what_is_left_out_is_out():
    race, scored = raced(np.array([0.0, 0.0, 3.0, 6.0]), "top1", out=frozenset({0, 1}))
    assert race.record(0, 1).order[0][0] == 3 and scored[:2].tolist() == [0, 0]
    assert math.isnan(race.drop(0)) and race.record(0, 1).settled


def test_a_broken_network_is_ahead_of_all_and_scored_once():
    race, scored = raced(np.array([0.0, math.inf, 1.0]), "top1")
    assert race.record(0, 1).order[0][0] == 1 and race.record(0, 1).settled
    assert scored.tolist() == [8, 8, 8]


def test_sets_are_raced_apart():
    one, other = candidates(2, {"figure": "f", "series": "a"}), candidates(3, {"figure": "f", "series": "b"})
    assert comparable([one[0], other[0], one[1], *other[1:]]) == [[0, 2], [1, 3, 4]]
    race = Race([*one, *other], "top2", 0.95, 100)  # the set of two is no question, that of three is one
    race.weights = [1.0] * 100
    run_rounds(race, lambda places, first, last: [race.drops[i].extend([float(i)] * (last - first)) for i in places])
    assert [len(x) for x in race.drops] == [8] * 5 and race.record(1, 1).settled
    with pytest.raises(ValueError, match="the top 3 of 3 candidates is no question"):
        Race([*one, *other], "top3", 0.95, 100)


def test_rounds_count_by_their_examples():
    mean, error = weighted_mean(np.array([1.0, 2.0, 6.0]), [50, 50, 25])
    assert mean == pytest.approx((50 * 1 + 50 * 2 + 25 * 6) / 125)
    equal = weighted_mean(np.array([1.0, 2.0, 6.0]), [7, 7, 7])
    assert equal == pytest.approx((3.0, np.std([1, 2, 6], ddof=1) / math.sqrt(3)))
    assert error > 0


def test_looks_end_with_the_last_round():
    assert looks(24) == [8, 12, 17, 24]
    assert looks(8) == [8] and looks(10) == [8, 10] and looks(5) == [5]
    assert all(a < b for a, b in zip(looks(1000), looks(1000)[1:], strict=False)) and looks(1000)[-1] == 1000


@pytest.mark.parametrize(("text", "value"), [("rank", "rank"), (" Top 10", "top10"), ("0.002", 0.002), (0.5, 0.5), (1, 1.0)])
def test_goals(text, value):
    assert parse_until(text) == value


@pytest.mark.parametrize("text", ["top", "top0", "best", "-1", "0", "nan", "inf", -0.1])
def test_goals_that_are_none(text):
    with pytest.raises(ValueError, match=r"until"):
        parse_until(text)


@pytest.mark.parametrize("confidence", [0, 1, 1.5, -0.1, math.nan])
def test_a_confidence_is_between_0_and_1(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Race(candidates(3), "rank", confidence, 100)


def test_one_candidate_has_no_rank():
    with pytest.raises(ValueError, match="one candidate has no rank"):
        Race(candidates(1), "rank", 0.95, 100)
