"""Scores over batches and candidates, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.task import signed
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.perturb import Codebook, Noise, NoiseCandidate, Quantize

F32 = np.float32


def params():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(4, 3)).astype(F32), "b": rng.normal(size=(4, 3)).astype(F32), "c": F32(0.5)}


def batches(*sizes):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(n, 4)).astype(F32) for n in sizes]


def score(p, x):
    y = jnp.abs(x @ (p["a"] + 2 * p["b"])).sum(axis=1) + p["c"]
    return {"big": (y > 4).sum(), "value": y.sum()}, x.shape[0]


def numpy_score(p, xs):
    x = np.concatenate(xs).astype(np.float64)
    y = np.abs(x @ (p["a"].astype(np.float64) + 2 * p["b"].astype(np.float64))).sum(axis=1) + p["c"]
    return {"big": (y > 4).mean(), "value": y.mean()}


def whole(magnitude, key=0, lower=-np.inf, upper=np.inf):
    return NoiseCandidate(F32(lower), F32(upper), F32(magnitude), jax.random.key(key))


@pytest.mark.parametrize("sizes", [(20,), (7, 7, 6), (1, 19), (5, 1, 14)])
def test_every_example_counts_the_same_however_they_are_batched(sizes):
    xs = batches(*sizes)
    assert Evaluator(score, xs).baseline(params()) == pytest.approx(numpy_score(params(), xs), rel=1e-6)


def test_each_candidate_perturbs_the_named_leaf_and_nothing_else():
    xs, p = batches(5, 3), params()
    candidates = [whole(0.25), whole(-3.0), whole(1.5, lower=0.0)]
    got = Evaluator(score, xs).scores(p, ["b"], Noise("collapse"), candidates)
    changed = [np.full_like(p["b"], 0.25), np.full_like(p["b"], -3.0), np.where(p["b"] >= 0, F32(1.5), p["b"])]
    assert len(got) == 3
    for metrics, b in zip(got, changed, strict=True):
        assert metrics == pytest.approx(numpy_score({**p, "b": b}, xs), rel=1e-6)


def test_several_leaves_are_quantized_together():
    xs, p = batches(5, 3), params()
    edges, values = np.array([0.0], F32), np.array([-0.7, 0.7], F32)
    (got,) = Evaluator(score, xs).scores(p, ["a", "b"], Quantize(), [Codebook(edges, values)])
    quantized = {**p, **{n: values[np.digitize(p[n], edges)] for n in "ab"}}
    assert got == pytest.approx(numpy_score(quantized, xs), rel=1e-6)


def difference(p, batch):
    """Zero as long as both leaves are the same."""
    return jnp.abs(p["a"] - p["b"]).sum(), batch.shape[0]


def test_two_leaves_get_different_noise_and_one_leaf_always_the_same():
    same = {"a": np.ones((4, 3), F32), "b": np.ones((4, 3), F32)}
    evaluator = Evaluator(difference, batches(1, 1))
    together = evaluator.scores(same, ["a", "b"], Noise("gaussian"), [whole(1.0)])[0]["score"]
    assert together > 1
    # Both batches see the same network, so that the mean over them is that of either.
    single = Evaluator(difference, batches(1)).scores(same, ["a", "b"], Noise("gaussian"), [whole(1.0)])[0]["score"]
    assert together == single
    noise = np.asarray(Noise("gaussian")(jnp.ones((4, 3)), whole(1.0, key=5))) - 1
    alone = evaluator.scores(same, ["a"], Noise("gaussian"), [whole(1.0, key=5)])[0]["score"]
    assert alone == pytest.approx(np.abs(noise).sum(), rel=1e-6)


def test_a_bare_scalar_is_called_score():
    xs = batches(3, 4)
    got = Evaluator(lambda p, x: (x.sum(), x.shape[0]), xs).baseline(params())
    assert got == {"score": pytest.approx(sum(x.sum(dtype=np.float64) for x in xs) / 7, rel=1e-5)}


def test_masked_examples_do_not_count():
    xs = [(x, np.arange(len(x)) < n) for x, n in zip(batches(4, 4), (4, 1), strict=True)]
    got = Evaluator(lambda p, b: ((b[0][:, 0] * b[1]).sum(), b[1].sum()), xs).baseline({})
    kept = np.concatenate([xs[0][0][:, 0], xs[1][0][:1, 0]]).astype(np.float64)
    assert got["score"] == pytest.approx(kept.mean(), rel=1e-6)


def test_sums_of_many_batches_are_added_in_float64():
    # In float32 the sum would stop growing at 2**24.
    xs = [F32(2**24)] + [F32(1)] * 64
    got = Evaluator(lambda p, x: (x, 1), xs).baseline({})
    assert got["score"] == (2**24 + 64) / 65


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_baseline_that_is_not_finite_is_an_error(value):
    evaluator = Evaluator(lambda p, x: ({"ok": x.sum(), "loss": p["c"] * x.shape[0]}, x.shape[0]), batches(3))
    with pytest.raises(ValueError, match=rf"the score's 'loss' is {value} on the unperturbed network"):
        evaluator.baseline({"c": F32(value)})


def test_a_perturbation_may_break_the_network():
    evaluator = Evaluator(lambda p, x: (p["c"] * x.shape[0], x.shape[0]), batches(3))
    (got,) = evaluator.scores({"c": F32(1)}, ["c"], Noise("collapse"), [whole(np.nan)])
    assert np.isnan(got["score"])


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="no batches to score on"):
        Evaluator(score, [])


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="counted no examples"):
        Evaluator(lambda p, x: (0.0, 0), batches(3)).baseline(params())


def test_a_sum_that_is_no_scalar_is_an_error():
    with pytest.raises(ValueError, match=r"'hits' must be a scalar sum over the batch, got shape \(3,\)"):
        Evaluator(lambda p, x: ({"hits": x[:, 0]}, x.shape[0]), batches(3)).baseline(params())


def test_a_count_that_is_no_scalar_is_an_error():
    with pytest.raises(ValueError, match=r"must be a scalar.*got shape \(3,\)"):
        Evaluator(lambda p, x: (x.sum(), x[:, 0]), batches(3)).baseline(params())


def test_a_metric_is_signed_by_its_name():
    metrics = {"loss": 2.0, "accuracy": 0.5}
    assert signed(metrics, "accuracy") == 0.5
    assert signed(metrics, "-loss") == -2.0
    for name in ("wer", "-wer"):
        with pytest.raises(ValueError, match="the score has no metric 'wer', only loss, accuracy"):
            signed(metrics, name)
