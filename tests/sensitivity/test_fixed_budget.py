"""The top of simulated candidates within a budget: found where it can be, and no surer than it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bqjax.sensitivity.fixed_budget import FixedBudget, phases
from bqjax.sensitivity.rounds import run_rounds
from bqjax.sensitivity.sweep_rows import Candidate

MEANS = np.array([0.0, 0.5, 5.0, 0.7, 4.0, 0.3, 6.0, -0.2, 0.1, 3.0])


def candidates(n, tags=None):
    return [Candidate(leaf=f"l{i}", tags=tags or {}) for i in range(n)]


def raced(means, top, budget=0.2, most=100, seed=0, spread=1.0, **options):
    """A race whose rounds are the means, noise of each candidate, and much noise that all share."""
    rng = np.random.default_rng(seed)
    race, scored = FixedBudget(candidates(len(means)), top, budget, most, **options), np.zeros(len(means), int)
    spread = np.broadcast_to(spread, len(means))

    def score(places, first, last):
        race.weights += [1.0] * (last - first)
        shared = 10 * rng.normal(size=last - first)
        noise = rng.normal(size=(len(means), last - first))
        for i in places:
            scored[i] += last - first
            race.drops[i] += list(means[i] + shared + spread[i] * noise[i])

    run_rounds(race, score)
    return race, scored


def test_phases_cost_what_there_is():
    for n, total in ((4, 60), (20, 320), (55, 900), (2, 9)):
        ends = phases(n, total)
        assert len(ends) == n - 1 and ends == sorted(ends)
        assert 0.7 * total < sum(ends) + ends[-1] <= total  # the last two leave together
    # By hand: the sum of 1/2 + 1/2 + 1/3 + 1/4 is 19/12; 56 over 19/12 of 4, 3 and 2.
    assert phases(4, 60) == [math.ceil(56 * 12 / 19 / k) for k in (4, 3, 2)]


def test_the_top_is_found_within_the_budget():
    for seed in range(30):
        race, scored = raced(MEANS, 4, seed=seed)
        record = race.record(scored.sum() / 100, 10)
        assert set(record.order[0][:4]) == {2, 4, 6, 9}
        assert scored.sum() <= 0.2 * 100 * len(MEANS)
        assert scored[6] < scored[[3, 9]].max()  # the one that is far from the border is looked at for a shorter time


def test_rounds_go_to_the_border():
    means = np.array([9.0, 8.0, 1.2, 0.8, -7.0, -8.0])
    right = sum(set(raced(means, 3, seed=seed, most=300)[0].record(0, 1).order[0][:3]) == {0, 1, 2} for seed in range(60))
    rng = np.random.default_rng(0)
    same = sum(rng.normal(0.4, math.sqrt(2 / 60)) > 0 for _ in range(60))
    assert right >= same  # than as many rounds for each would tell


def test_noise_counts_not_the_gap_alone():
    # The first is far ahead and very noisy: it may not be taken for what it happened to show.
    race, scored = raced(np.array([1.5, 1.0, 0.0, -1.0]), 2, spread=np.array([6.0, 0.1, 0.1, 0.1]), most=400)
    assert scored[0] == scored.max() and 1 in race.members(range(4))


def test_it_is_never_surer_than_it_is():
    # Nothing differs that could be told, or the two at the border do not: who is said to be on a side may be on the other one.
    for means, top in ((np.zeros(4), 1), (np.array([2.0, 1.0, 1.0, 0.0]), 2)):
        wrong = np.zeros(4)
        for seed in range(80):
            record = raced(means - 1e-9 * np.arange(4), top, seed=seed)[0].record(0, 1)
            wrong += [record.sure[i] >= 0.8 and (i in record.order[0][:top]) != (i < top) for i in range(4)]
        assert wrong.max() <= 0.2 * 80
    # Means that lie as close as the errors: those said to be sure are right.
    claims = wrong = 0
    for seed in range(40):
        record = raced(np.linspace(0, 3, 8), 4, seed=seed)[0].record(0, 1)
        sure = [i for i in range(8) if record.sure[i] >= 0.95]
        claims += len(sure)
        wrong += any((i in record.order[0][:4]) != (i >= 4) for i in sure)
    assert claims > 40 and wrong <= 2


def test_it_says_what_is_open():
    race, scored = raced(np.array([9.0, 5.0, 5.0, 0.0]), 2, most=400)
    record = race.record(scored.sum() / 400, 4)
    assert record.open in (((1, 2),), ((2, 1),)) and not record.settled
    assert record.sure[0] >= 0.95 and record.sure[3] >= 0.95 and max(record.sure[1:3]) < 0.95
    assert record.reached.startswith("1 of the 2 layers in the top are sure at 95 %; 2 candidates")
    assert record.until == "top2" and record.budget == 0.2
    race, _ = raced(np.array([9.0, 6.0, 3.0, 0.0]), 2, most=400, spread=0.1)
    assert race.record(0, 1).settled and race.record(0, 1).open == ()


def test_equal_keys_equal_results():
    one, other = (raced(MEANS, 4, seed=3)[0].record(0, 1) for _ in range(2))
    assert one == other


def test_what_is_left_out_is_rejected_and_costs_nothing():
    all_in, _ = raced(MEANS, 2)
    race, scored = raced(MEANS, 2, out=frozenset({0, 7, 8}))
    assert set(race.record(0, 1).order[0][:2]) == {2, 6} and scored[[0, 7, 8]].tolist() == [0, 0, 0]
    assert race.looks[-1] > all_in.looks[-1]  # the others get what they would have taken
    assert race.record(0, 1).sure[0] == 0.0  # nothing was measured of it
    race, _ = raced(np.array([9.0, 6.0, 3.0, 0.0]), 2, most=400, spread=0.1, out=frozenset({3}))
    assert race.record(0, 1).settled and min(race.record(0, 1).sure[:3]) > 0.95


def test_a_broken_network_is_accepted_at_once():
    race, scored = raced(np.array([0.0, math.inf, 1.0, 5.0, math.nan]), 3, most=200)
    assert set(race.record(0, 1).order[0][:3]) == {1, 3, 4} and race.record(0, 1).settled
    assert scored[1] == scored[4] == race.looks[0]


def test_sets_have_budgets_of_their_own():
    one, other = candidates(2, {"figure": "f", "series": "a"}), candidates(6, {"figure": "f", "series": "b"})
    race = FixedBudget([*one, *other], 2, 0.25, 200)  # the set of two is no question
    race.weights = [1.0] * 400
    run_rounds(race, lambda places, first, last: [race.drops[i].extend([float(i)] * (last - first)) for i in places])
    assert [len(x) for x in race.drops[:2]] == [50, 50] and sum(len(x) for x in race.drops[2:]) <= 0.25 * 200 * 6
    order = race.record(1, 1).order
    assert order[0] == (1, 0) and set(order[1][:2]) == {6, 7} and race.record(1, 1).settled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.05}, r"pays for 50 rounds of single candidates, and the top 4 of 10 need .*: pass budget=0\.\d+ or more"),
        ({"budget": 1, "most": 5}, "give the candidates more draws, or the sweep more examples"),
        ({"budget": 0}, "above 0 and at most 1; got 0"),
        ({"budget": 1.5}, "above 0 and at most 1; got 1.5"),
        ({"budget": math.nan}, "got nan"),
        ({"top": 10}, "the top 10 of 10 candidates is no question"),
        ({"confidence": 1}, "a confidence must be between 0 and 1"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        raced(MEANS, **{"top": 4, **options})


def test_the_budget_that_it_asks_for_is_enough():
    with pytest.raises(ValueError, match="pass budget=") as caught:
        raced(MEANS, 4, budget=0.01)
    needed = float(str(caught.value).partition("budget=")[2].split()[0])
    assert raced(MEANS, 4, budget=needed)[0].looks[0] == 3
    with pytest.raises(ValueError, match="pass budget="):
        raced(MEANS, 4, budget=needed - 0.002)
