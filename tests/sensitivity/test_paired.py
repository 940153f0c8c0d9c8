"""Standard errors over examples and draws against simulation and SciPy, Holm against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from bqjax.sensitivity.paired import errors_between, errors_of, holm, p_values, t_quantile


def simulated(rng, draws, n, of_draws, of_examples, of_both, mean=0.0):
    """``[draws, n]`` with effects of known deviation."""
    return (
        mean
        + of_draws * rng.normal(size=(draws, 1))
        + of_examples * rng.normal(size=(1, n))
        + of_both * rng.normal(size=(draws, n))
    )


def test_one_draw_has_the_paired_standard_error():
    d = np.random.default_rng(0).normal(size=(1, 50))
    found = errors_of(d)
    assert found.examples == found.both == pytest.approx(scipy.stats.sem(d[0]))
    assert math.isnan(found.draws) and found.freedom == 49
    # Examples that are not told apart: what is known is over draws.
    found = errors_of(d.T)
    assert found.draws == found.both == pytest.approx(scipy.stats.sem(d[0]))
    assert math.isnan(found.examples) and found.freedom == 49
    assert math.isnan(errors_of(d[:, :1]).both)


@pytest.mark.parametrize("deviations", [(1.0, 0.1, 0.1), (0.1, 1.0, 0.5), (0.3, 3.0, 6.0)])
def test_the_error_is_the_spread_of_the_mean_over_new_examples_and_new_draws(deviations):
    rng = np.random.default_rng(1)
    samples = [simulated(rng, 6, 40, *deviations) for _ in range(2000)]
    truth = np.std([s.mean() for s in samples])
    assert math.sqrt(np.mean([errors_of(s).both ** 2 for s in samples])) == pytest.approx(truth, rel=0.1)


def test_statements_hold_as_often_as_they_say():
    rng = np.random.default_rng(2)
    samples = [errors_of(simulated(rng, 4, 60, 1.0, 3.0, 3.0)) for _ in range(2000)]
    p = p_values([s.mean for s in samples], [s.both for s in samples], [s.freedom for s in samples])
    assert 0.02 < (p <= 0.05).mean() < 0.07


def test_what_two_rows_share_cancels():
    rng = np.random.default_rng(3)
    base = simulated(rng, 8, 100, 1.0, 5.0, 0.0)
    a, b = base + 0.1 * rng.normal(size=base.shape), base + 0.1 * rng.normal(size=base.shape) + 0.2
    common = errors_between(a, b, common=True)
    assert common.mean == pytest.approx(a.mean() - b.mean()) and common == errors_of(a - b)
    apart = errors_between(a, b[::-1], common=False)
    assert apart.mean == pytest.approx(common.mean)
    # Other draws: the examples cancel still, the draws of both remain.
    assert apart.examples == pytest.approx(common.examples)
    assert apart.draws == pytest.approx(math.hypot(errors_of(a).draws, errors_of(b).draws))
    assert common.both < 0.05 < apart.both
    assert errors_between(a, b[:3], common=False).mean == pytest.approx(a.mean() - b[:3].mean())
    with pytest.raises(ValueError, match=r"shapes \(8, 100\) and \(8, 99\) are not paired"):
        errors_between(a, b[:, :99], common=False)
    with pytest.raises(ValueError, match="not paired"):
        errors_between(a, b[:3], common=True)


def test_p_values_are_those_of_scipy():
    x = np.random.default_rng(4).normal(0.4, 1, size=(5, 12))
    found = p_values(x.mean(1), scipy.stats.sem(x, axis=1), [11] * 5)
    np.testing.assert_allclose(found, scipy.stats.ttest_1samp(x, 0, axis=1).pvalue, rtol=1e-6)
    assert p_values([0.0, 1.0, 1.0], [0.0, 0.0, math.nan], [3, 3, 3]).tolist()[:2] == [1.0, 0.0]
    assert math.isnan(p_values([1.0], [math.nan], [3])[0])
    assert t_quantile(0.05, 11) == pytest.approx(scipy.stats.t.isf(0.025, 11))


def test_holm_is_the_step_down_procedure():
    rng = np.random.default_rng(5)
    for n in (1, 2, 7):
        p = rng.uniform(0, 0.1, n)
        adjusted = holm(p)
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for k, i in enumerate(np.argsort(p)):  # the textbook's loop
                if p[i] > level / (n - k):
                    break
                rejected.add(i)
            assert set(np.flatnonzero(adjusted <= level)) == rejected
    assert np.isnan(holm(np.array([np.nan, 0.01]))).tolist() == [True, False]
    assert holm(np.array([np.nan, 0.01]))[1] == 0.02  # one that could not be made counts all the same
