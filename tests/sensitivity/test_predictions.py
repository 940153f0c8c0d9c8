"""Predicted effects: exact for a linear network, and in the order of what is measured."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity.curvature import output_curvature
from bqjax.sensitivity.perturb import Noise
from bqjax.sensitivity.predictions import out_of_reach, predicted_effects, rank_correlation
from bqjax.sensitivity.sweep_rows import point_of
from bqjax.sensitivity.sweeps import Candidate, sweep

F32 = np.float32
KEY = jax.random.key(0)


@functools.cache
def network():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 3)).astype(F32), "scale": F32(2.0) * np.ones(3, F32), "n": np.arange(3, dtype=np.int8)}
    batches = [rng.normal(size=(20, 4)).astype(F32)]
    return params, batches, output_curvature(outputs, params, batches, key=KEY, draws=64)


def outputs(p, x):
    return (x @ p["w"]) * p["scale"][None]


CANDIDATES = [
    Candidate(leaf="w", magnitude=m, lower=lower, draws=3) for m, lower in ((0.1, -np.inf), (0.2, -np.inf), (0.2, 0.5))
] + [Candidate(leaf="scale", magnitude=0.1, draws=2), Candidate(leaf="n", magnitude=1.0)]


def test_a_linear_network_is_predicted_exactly():
    params, batches, curvature = network()
    found = predicted_effects(curvature, params, CANDIDATES, key=KEY)
    assert np.isnan(found[4])  # integers have no curvature
    for c, value in list(zip(CANDIDATES, found, strict=True))[:3]:
        changes = []
        for draw in range(c.draws):
            new = Noise("gaussian")(jnp.asarray(params["w"]), point_of(c, draw, KEY, F32))
            d = np.asarray(outputs({**params, "w": new}, batches[0]) - outputs(params, batches[0]), np.float64)
            changes.append(np.square(d).sum(1).mean())
        assert value == pytest.approx(np.mean(changes), rel=0.1)  # the importance of outputs is a sample's
    # Common random numbers: twice the noise is four times the effect.
    assert found[1] == pytest.approx(4 * found[0], rel=1e-4)
    assert 0 < found[2] < found[1]
    assert found[3] > 0  # by the importance of its weights


def test_sweeps_carry_predictions_and_leave_out_what_is_out_of_reach():
    params, batches, curvature = network()

    def score(p, x):
        return {"loss": jnp.square(outputs(p, x) - outputs(network()[0], x)).sum()}, x.shape[0]

    candidates = [Candidate(leaf="w", magnitude=m, draws=16) for m in (0.01, 0.02, 0.5, 1.0)]
    options = {"key": KEY, "metric": "-loss", "curvature": curvature}
    rows = sweep(score, params, batches, candidates, **options).rows
    assert rank_correlation([r.drop for r in rows], [r.predicted for r in rows]) == 1.0
    assert rows[2].drop == pytest.approx(rows[2].predicted, rel=0.5)
    raced = sweep(score, params, batches, candidates, until="top1", first="predict", **options)
    assert raced.race.settled and raced.race.order[0][0] == 3
    assert [row.drops == () for row in raced.rows] == [True, True, False, False]
    for change, message in (
        ({"until": "rank"}, "goes with a race for a top"),
        ({"until": "top1", "curvature": None}, "needs curvature="),
        ({"until": None}, "goes with a race for a top"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(score, params, batches, candidates, first="predict", **(options | change))


def test_reach():
    candidates = [Candidate(leaf=f"l{i}") for i in range(5)]
    predicted = np.array([100.0, 5.0, 0.4, np.nan, 9.0])
    assert out_of_reach(predicted, candidates, 2) == {2}
    assert out_of_reach(predicted, candidates, 1) == {1, 2, 4}
    assert out_of_reach(predicted, candidates, 1, reach=30) == {2}
    assert out_of_reach(predicted, candidates, 4) == frozenset()


def test_curvature_of_other_parameters_is_refused():
    params, _, curvature = network()
    with pytest.raises(ValueError, match="other parameters"):
        predicted_effects(curvature, {**params, "w": params["w"] * 2}, CANDIDATES, key=KEY)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        predicted_effects(curvature, params, CANDIDATES, key=KEY, draws=0)


def test_rank_correlation_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, 20), rng.integers(0, 4, 20)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(rank_correlation([1, 1], [1, 2]))
