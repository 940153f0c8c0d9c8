"""The table of a sweep is that of a plain loop, whatever else is swept and however often it is interrupted."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_layers import F32, KEY, examples, loss_by_hand, params, run, score

from bqjax.core.task import Predictions
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.perturb import Noise
from bqjax.sensitivity.sweep_rows import point_of
from bqjax.sensitivity.sweep_run import text_digest
from bqjax.sensitivity.sweeps import Candidate

# --- numbers -------------------------------------------------------------------------------------------------------------


def test_drops_and_standard_errors_are_those_of_a_plain_loop():
    candidates = [
        Candidate(leaf="b", magnitude=0.5, draws=5, tags={"bin": "3"}),
        Candidate(leaf="a", perturb="relative", magnitude=0.5, lower=-0.3, upper=0.9, draws=3),
        Candidate(leaf="a", perturb="collapse", magnitude=-1.0),
        Candidate(leaf="b", magnitude=2.0, draws=2),
    ]
    result = run(candidates, sizes=(5, 3))
    assert result.baseline["loss"] == pytest.approx(loss_by_hand(), rel=1e-5)
    assert [row.candidate for row in result.rows] == candidates  # in the order of the candidates, not of the leaves
    for c, row in zip(candidates, result.rows, strict=True):
        losses = []
        for draw in range(c.draws):
            own = Noise(c.perturb)(jnp.asarray(params()[c.leaf]), point_of(c, draw, KEY, F32))
            losses.append(loss_by_hand({c.leaf: own}))
        drops = np.array(losses) - loss_by_hand()  # a loss that rises by 1 is a drop of 1
        np.testing.assert_allclose(row.drops, drops, rtol=1e-4, atol=1e-6)
        assert row.drop == pytest.approx(drops.mean(), rel=1e-4, abs=1e-6)
        assert row.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        if c.draws > 1:
            # The spread of the draws, each against the same baseline, over the root of their number.
            error = math.sqrt(sum((d - drops.mean()) ** 2 for d in drops) / (c.draws - 1) / c.draws)
            assert row.standard_error == pytest.approx(error, rel=1e-4)
        else:
            assert math.isnan(row.standard_error)
    assert len({drop for row in result.rows for drop in row.drops}) == 11
    assert (result.metric, result.n_scores, result.n_resumed, result.unused) == ("-loss", 11, 0, ())
    assert 0 < result.compile_seconds < result.seconds


def test_a_metric_without_a_minus_drops_when_it_falls():
    (row,) = run([Candidate(leaf="b", perturb="collapse", magnitude=0.0)], metric="accuracy").rows
    labels = examples()[1]  # the broken network always says 0
    assert row.metrics["accuracy"] == (labels == 0).mean()
    z = np.tanh(examples()[0] @ params()["a"]) @ params()["b"]
    assert row.drop == ((z > 0) == labels).mean() - (labels == 0).mean()


def test_the_noise_of_a_candidate_does_not_depend_on_what_else_is_swept():
    candidates = [Candidate(leaf=leaf, magnitude=m, draws=3) for leaf in ("a", "b") for m in (0.1, 0.2, 0.3)]
    together = run(candidates).rows
    assert run(candidates[::-1]).rows[::-1] == together
    assert run(candidates[4:5]).rows == together[4:5]
    # More draws go on from the fewer ones, twice the same is the same, and tags are only carried along.
    more = Candidate(leaf="a", magnitude=0.1, draws=4)
    twice = run([more, more, Candidate(leaf="a", magnitude=0.1, draws=4, tags={"x": "y"})]).rows
    assert twice[0].drops[:3] == together[0].drops
    assert twice[0].drops == twice[1].drops == twice[2].drops
    assert twice[2].candidate.tags == {"x": "y"}
    # Another key, magnitude, leaf or draw: other noise.
    assert run(candidates[:1], key=jax.random.key(6)).rows[0].drops != together[0].drops
    assert len({drop for row in together for drop in row.drops}) == 18


def test_a_leaf_that_the_score_does_not_use_drops_by_exactly_0_and_is_listed():
    candidates = [
        Candidate(leaf="unused", magnitude=9.0, draws=3),
        Candidate(leaf="b", magnitude=0.5),
        Candidate(leaf="unused", perturb="uniform", magnitude=1.0),
    ]
    result = run(candidates)
    assert result.unused == ("unused",)
    assert result.rows[0].drops == (0.0, 0.0, 0.0) and result.rows[0].standard_error == 0.0
    assert result.rows[2].drop == 0.0 and result.rows[2].metrics == result.baseline
    assert result.rows[1].drop != 0.0


def test_every_example_counts_the_same_however_they_are_batched():
    candidates = [Candidate(leaf="b", magnitude=0.5, draws=2)]
    whole = run(candidates)
    for sizes in ((7, 1), (1, 5, 2)):
        parts = run(candidates, sizes=sizes)
        assert parts.baseline == pytest.approx(whole.baseline, rel=1e-6)
        assert parts.rows[0].metrics == pytest.approx(whole.rows[0].metrics, rel=1e-6)
        assert parts.rows[0].drops == pytest.approx(whole.rows[0].drops, rel=1e-4)


def test_a_network_that_a_perturbation_breaks_is_a_row_like_any_other():
    result = run([Candidate(leaf="b", perturb="collapse", magnitude=math.inf), Candidate(leaf="b", magnitude=0.1)])
    assert not math.isfinite(result.rows[0].drop)
    assert math.isfinite(result.rows[1].drop)


# --- errors over examples, statements, races ---------------------------------------------------------------------------------


def predict(p, batch):
    x, y = batch
    z = jnp.tanh(x @ p["a"]) @ p["b"]
    right = (z > 0) == y
    return Predictions(z > 0, right, jnp.ones(len(y), bool), {"loss": jnp.square(z - y)})


TOLD = [Candidate(leaf="b", magnitude=m, draws=4) for m in (0.5, 0.6)] + [Candidate(leaf="unused", magnitude=1.0, draws=2)]


@functools.cache
def told():
    return run(TOLD, sizes=(5, 3), predict=predict)


def test_differences_are_each_examples_own():
    result = told()
    x, y = (np.asarray(array, np.float64) for array in examples())

    def losses(b):
        return np.square(np.tanh(x @ params()["a"]) @ b - y)

    for c, row in zip(TOLD[:2], result.rows, strict=False):
        noisy = [np.asarray(Noise("gaussian")(jnp.asarray(params()["b"]), point_of(c, d, KEY, F32)), np.float64) for d in range(4)]
        expected = np.array([losses(b) for b in noisy]) - losses(params()["b"])
        np.testing.assert_allclose(row.differences, expected, rtol=1e-3, atol=1e-5)
        assert row.paired_error == pytest.approx(expected.mean(0).std(ddof=1) / math.sqrt(8), rel=1e-3)
        assert max(row.paired_error, row.standard_error) <= row.error <= math.hypot(row.paired_error, row.standard_error) + 1e-9
        assert row.differences.mean() == pytest.approx(row.drop, rel=1e-4)
    # The same drops as without predictions, which change nothing but what is told.
    assert [r.drops for r in run(TOLD, sizes=(5, 3)).rows] == [pytest.approx(r.drops, rel=1e-5) for r in result.rows]
    assert result.rows[2].error == result.rows[2].paired_error == 0.0


def test_magnitudes_share_their_noise():
    half, more = told().rows[:2]
    points = [point_of(c, 2, KEY, F32) for c in TOLD[:2]]
    assert (jax.random.key_data(points[0].key) == jax.random.key_data(points[1].key)).all()
    (between,) = told().differences([0, 1])
    # Paired draw by draw: far closer than two independent means.
    assert between.difference == pytest.approx(half.drop - more.drop)
    assert between.error < 0.5 * math.hypot(half.error, more.error)


def test_statements_are_adjusted_together():
    zero = told().against_zero(level=0.05)
    assert [s.first for s in zero] == [0, 1, 2] and all(s.second is None for s in zero)
    assert zero[2].p == 1.0 and not zero[2].differs
    assert all(s.differs == (s.p <= 0.05) for s in zero)
    assert [(s.first, s.second) for s in told().differences()] == [(0, 1), (0, 2), (1, 2)]
    assert all(s.p <= t.p for s, t in zip(told().differences([0, 1]), told().differences(), strict=False))
    for level in (0, 1, math.nan):
        with pytest.raises(ValueError, match="a level must be between 0 and 1"):
            told().against_zero(level)
    single = run(TOLD[:1]).against_zero()[0]  # without predictions, over draws alone
    assert single.error == pytest.approx(told().rows[0].standard_error, rel=1e-4)


def test_predictions_must_tell_of_the_metric():
    with pytest.raises(ValueError, match="predictions say nothing of each example's 'size'"):
        run(TOLD, metric="-size", score=lambda p, b: ({**score(p, b)[0], "size": 1.0}, 8), predict=predict)


def test_the_journal_keeps_differences_and_answers_with_those_of_earlier_releases(tmp_path):
    path = tmp_path / "state"
    first = run(TOLD, sizes=(5, 3), predict=predict, state_path=str(path))
    again = run(TOLD, sizes=(5, 3), predict=predict, state_path=str(path))
    assert again.n_resumed == 8 and again.rows == first.rows == told().rows
    assert (again.rows[0].differences == first.rows[0].differences).all()
    # A line as earlier releases wrote it: metrics alone, under the text of the candidates and draws.
    old = tmp_path / "old"
    old.write_text(path.read_text().splitlines()[0] + "\n")
    key = text_digest([(c.described(), d) for c in TOLD[:2] for d in range(4)])
    with old.open("a") as file:
        file.write(json.dumps({"k": "baseline", "v": dict(first.baseline)}) + "\n")
        file.write(json.dumps({"k": key, "v": [{"accuracy": 0.5, "loss": 1.0}] * 8}) + "\n")
    resumed = run(TOLD, sizes=(5, 3), predict=predict, state_path=str(old))
    assert resumed.n_resumed == 8 and resumed.rows[0].metrics["loss"] == 1.0
    assert resumed.rows[0].differences is None and math.isnan(resumed.rows[0].paired_error)
    assert resumed.against_zero()[0].error == 0.0


RACE = [Candidate(leaf=leaf, magnitude=m, draws=64) for leaf in ("a", "b") for m in (0.01, 3.0)]


def test_a_race_settles_the_top_with_fewer_evaluations(tmp_path):
    state = str(tmp_path / "state")
    result = run([*RACE, Candidate(leaf="unused", draws=64)], until="top2", state_path=state)
    race = result.race
    assert race.settled and set(race.order[0][:2]) == {1, 3} and race.reached == "2 of the top 2 are settled"
    assert 0 < race.evaluations < 0.6 * race.of == 0.6 * 320
    full = run(RACE).rows
    for raced, row in zip(result.rows, full, strict=False):
        assert raced.drop == pytest.approx(row.drop, abs=5 * math.hypot(raced.error, row.standard_error))
        assert raced.metrics["loss"] - result.baseline["loss"] == pytest.approx(raced.drop, rel=1e-4, abs=1e-6)
    assert result.rows[4].drop == 0.0 and result.unused == ("unused",)
    again = run([*RACE, Candidate(leaf="unused", draws=64)], until="top2", state_path=state)
    assert again.race == race and again.n_resumed == again.n_scores > 0
    assert [(s.first, s.second) for s in result.differences([1, 0])] == [(1, 0)]


def test_a_race_within_a_budget_says_how_sure_it_is_and_goes_on_where_it_was(tmp_path):
    state = str(tmp_path / "state")
    result = run(RACE, until="top2", budget=0.3, state_path=state)
    race = result.race
    assert set(race.order[0][:2]) == {1, 3} and race.budget == 0.3 and race.until == "top2"
    assert 0.15 * race.of < race.evaluations <= 0.3 * race.of and min(race.sure) >= 0.95 and race.settled
    again = run(RACE, until="top2", budget=0.3, state_path=state)
    assert again.race == race and again.rows == result.rows and again.n_resumed == again.n_scores > 0
    lines = (tmp_path / "state").read_text().splitlines()
    (tmp_path / "part").write_text("\n".join(lines[:-2]) + "\n")
    part = run(RACE, until="top2", budget=0.3, state_path=str(tmp_path / "part"))
    assert part.race == race and part.rows == result.rows and 0 < part.n_resumed < part.n_scores
    assert run(RACE, until="top2", budget=0.3, key=jax.random.key(9)).race.evaluations != 0


def test_a_race_needs_a_question_and_enough_to_answer_it():
    for options, message in (
        ({"until": "top2", "confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"until": "top4"}, "the top 4 of 4 candidates is no question"),
        ({"until": "best"}, "until 'rank'"),
        ({"budget": 0.2}, "goes with a race for a top: pass until='top10'"),
        ({"until": "rank", "budget": 0.2}, "a budget goes with a race for a top, as until='top10', not 'rank'"),
        ({"until": "top2", "budget": 0.2, "tolerance": 0.1}, "a tolerance goes with a race that runs until something is settled"),
        ({"until": "top2", "budget": 0.001}, "pass budget="),
    ):
        with pytest.raises(ValueError, match=message):
            run(RACE, **options)
    with pytest.raises(ValueError, match="has 4 rounds of 2 draws, and needs 16"):
        run([Candidate(leaf="a", draws=1), Candidate(leaf="b", draws=1)], until="rank")


# --- perturbations of one's own, and their context ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    by: float

    def __call__(self, weights, candidate):
        return weights * (self.by + candidate.magnitude)


def shift(weights, candidate):
    return weights + candidate.magnitude


@dataclass(frozen=True)
class Along:
    def __call__(self, weights, candidate, gradient):
        return weights - candidate.magnitude * gradient


def test_perturbations_of_ones_own():
    made = [
        Candidate(leaf="b", perturb=Scale(1.0), magnitude=0.5),
        Candidate(leaf="b", perturb=Scale(2.0), magnitude=0.5),
        Candidate(leaf="b", perturb=shift, magnitude=0.5),
    ]
    losses = [row.metrics["loss"] for row in run(made).rows]
    b = params()["b"]
    assert losses == pytest.approx([loss_by_hand({"b": new}) for new in (b * 1.5, b * 2.5, b + 0.5)], rel=1e-5)


def test_a_perturbation_without_a_lasting_name_is_refused():
    # Its text would be an address: noise and state files would differ from run to run.
    with pytest.raises(ValueError, match=r"the perturbation <function .*lambda.* has no name that another run would know it by"):
        Candidate(leaf="b", perturb=lambda weights, candidate: weights)


def test_context_is_the_third_argument_of_its_own_leaf():
    gradients = {"a": np.full((4, 3), 0.1, F32), "b": np.arange(3, dtype=F32)}
    rows = run([Candidate(leaf=leaf, perturb=Along(), magnitude=0.5) for leaf in ("a", "b")], context=gradients).rows
    for leaf, row in zip(("a", "b"), rows, strict=True):
        assert row.metrics["loss"] == pytest.approx(loss_by_hand({leaf: params()[leaf] - 0.5 * gradients[leaf]}), rel=1e-5)


# --- state files -------------------------------------------------------------------------------------------------------------


MANY = [Candidate(leaf=leaf, perturb=kind, magnitude=0.2, draws=2) for leaf in ("a", "b") for kind in ("gaussian", "uniform")]


class Interrupted(Exception):
    pass


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    path, whole = str(tmp_path / "state"), run(MANY)
    seen = []

    def interrupt(done, total, text):
        seen.append((done, total, text.split()[0]))
        if done == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(MANY, state_path=path, progress=interrupt)
    assert seen == [(2, 8, "a"), (4, 8, "a")]
    scored, scores = [], Evaluator.measure

    def counting(self, params, names, perturbation, candidates, **others):
        scored.append((list(names), perturbation.kind, len(candidates)))
        return scores(self, params, names, perturbation, candidates, **others)

    monkeypatch.setattr(Evaluator, "measure", counting)
    result = run(MANY, state_path=path)
    assert scored == [(["b"], "gaussian", 2), (["b"], "uniform", 2)]
    assert result.n_resumed == 4
    assert (result.rows, result.baseline) == (whole.rows, whole.baseline)
    # Now all of it, in any order.
    result = run(MANY[::-1], state_path=path)
    assert (len(scored), result.n_resumed, result.rows) == (2, 8, whole.rows[::-1])


def test_the_state_file_of_another_sweep_is_refused(tmp_path):
    path = str(tmp_path / "state")
    candidates = [Candidate(leaf="unused", magnitude=0.1)]
    run(candidates, state_path=path)
    for change, named in (
        ({"key": jax.random.key(6)}, "key"),
        ({"p": {**params(), "a": params()["a"] * 2}}, "params"),
        ({"sizes": (7,)}, "batches"),
        ({"context": {"b": np.ones(3, F32)}}, "context"),
    ):
        with pytest.raises(ValueError, match=rf"belongs to another run \({named} changed\)"):
            run(candidates, state_path=path, **change)


def test_a_magnitude_may_be_any_number():
    magnitudes = [1, F32(0.25), np.float64(0.25)]
    rows = run([Candidate(leaf="b", perturb=shift, magnitude=magnitude) for magnitude in magnitudes]).rows
    for row, magnitude in zip(rows, magnitudes, strict=True):
        assert row.metrics["loss"] == pytest.approx(loss_by_hand({"b": params()["b"] + F32(magnitude)}), rel=1e-5)
