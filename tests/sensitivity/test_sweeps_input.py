"""What a sweep cannot be asked is answered before anything runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from two_layers import F32, params, run

from bqjax.sensitivity.sweeps import Candidate


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"magnitude": -0.1}, "leaf 'b': magnitude must be finite and not negative, got -0.1"),
        ({"magnitude": math.nan}, "leaf 'b': magnitude must be finite and not negative, got nan"),
        ({"magnitude": math.inf}, "leaf 'b': magnitude must be finite and not negative, got inf"),
        ({"draws": 0}, "leaf 'b': draws must be at least 1, got 0"),
        ({"perturb": "cauchy"}, "kind of perturbation must be one of gaussian, .*, got 'cauchy'"),
    ],
)
def test_candidates_that_make_no_sense_are_errors(field, message):
    with pytest.raises(ValueError, match=message):
        Candidate(leaf="b", **field)


ONE = [Candidate(leaf="b", magnitude=0.1)]


def test_nothing_to_sweep_is_an_error():
    with pytest.raises(ValueError, match="no candidates to sweep over"):
        run([])
    with pytest.raises(ValueError, match="no leaf is named 'c'; the leaves are a, b, unused"):
        run([*ONE, Candidate(leaf="c", magnitude=0.1)])
    with pytest.raises(ValueError, match="no batches to score on"):
        run(ONE, sizes=())


def test_weights_that_are_not_finite_are_errors():
    with pytest.raises(ValueError, match=r"b\b.*(NaN|nan|finite)"):
        run(ONE, {**params(), "b": np.array([0, np.nan, 0], F32)})
    # In a leaf that is not swept they show in the baseline.
    with pytest.raises(ValueError, match="the score's 'loss' is nan on the unperturbed network"):
        run(ONE, {**params(), "a": np.full((4, 3), np.nan, F32)})


def test_a_metric_that_the_score_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="the score has no metric 'wer', only accuracy, loss"):
        run(ONE, metric="wer")


@pytest.mark.parametrize(
    "needs",
    [
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: 1.0 if x.sum() > 0 else 0.0,
        lambda x: np.asarray(x).sum(),
        lambda x: x[x > 0].sum(),
        lambda x: x.sum().item(),
        lambda x: len(range(x.sum().astype(int))),
    ],
)
def test_a_score_that_cannot_be_traced_is_an_error(needs):
    with pytest.raises(ValueError, match="the score must be traceable by JAX, but it needs the value of an array"):
        run(ONE, metric="score", score=lambda p, batch: (needs(batch[0] @ p["a"]), 8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, batch: ({"loss": batch[1] * p["b"][0]}, 8), r"'loss' must be a scalar sum over the batch, got shape \(8,\)"),
        (lambda p, batch: (p["b"].sum(), batch[1]), r"'count' must be a scalar sum over the batch, got shape \(8,\)"),
        (lambda p, batch: p["b"].sum(), r"the score must return a pair \(sums, count\)"),
        (lambda p, batch: {"loss": p["b"].sum()}, r"the score must return a pair \(sums, count\), got dict"),
        (lambda p, batch: (p["b"].sum(), 8, None), r"the score must return a pair \(sums, count\), got tuple"),
        (lambda p, batch: (p["b"].sum(), 0), "the score counted no examples in any batch"),
    ],
)  # fmt: skip
def test_a_score_of_the_wrong_form_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        run(ONE, score=wrong)
