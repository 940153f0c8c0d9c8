"""Rank correlation and its jackknife against SciPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bqjax.core.scoring import paired_error, score_on
from bqjax.core.task import Task
from train.tasks.similarity import jackknife_values, similarity_predict, similarity_score, spearman

N = 12


@given(
    st.lists(st.integers(0, 5), min_size=N, max_size=N),
    st.lists(st.integers(0, 5), min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N),
)
def test_correlation_and_jackknife_are_those_of_scipy(a, b, keep):
    keep = np.array(keep) | (np.arange(N) < 5)
    a, b = np.array(a, np.float32), np.array(b, np.float32)
    a[:5], b[:5] = [0, 1, 2, 3, 5], [1, 0, 5, 3, 2]  # neither is constant, whoever is left out
    x, y = a[keep], b[keep]
    rho = scipy.stats.spearmanr(x, y)[0]
    np.testing.assert_allclose(float(_spearman(a, b, keep)), rho, atol=2e-6)
    n = len(x)
    without = [scipy.stats.spearmanr(np.delete(x, i), np.delete(y, i))[0] for i in range(n)]
    np.testing.assert_allclose(np.asarray(_jackknife(a, b, keep))[keep], n * rho - (n - 1) * np.array(without), atol=1e-4)


_spearman, _jackknife = jax.jit(spearman), jax.jit(jackknife_values)


def test_a_set_is_scored_as_one():
    rng = np.random.default_rng(0)
    said = rng.uniform(0, 5, 40).astype(np.float32)
    noise = rng.normal(size=(2, 40)).astype(np.float32)
    counted = np.arange(40) < 37

    def cosines(params, batch):
        return jnp.tanh(batch["said"] / 5 + params["noise"] * batch["noise"]), batch["said"], batch["counted"]

    batch = {"said": said, "noise": noise[0], "counted": counted}
    task = Task(
        name="toy",
        params={"noise": jnp.float32(0.1)},
        score=similarity_score(cosines),
        predict=similarity_predict(cosines),
        calibration=[batch],
        test=[batch],
        metric="spearman",
        rank_by="spearman",
    )
    before, after = score_on(task, task.params, task.test), score_on(task, {"noise": jnp.float32(0.3)}, task.test)
    assert before.n_examples == 37 == len(before.parts) == len(before.predictions)
    cosine = [np.tanh(said / 5 + scale * noise[0])[:37] for scale in (0.1, 0.3)]
    error = np.square(cosine[0] - said[:37] / 5)
    np.testing.assert_allclose(before.metrics["loss"], error.mean(), rtol=1e-5)
    np.testing.assert_allclose(task.predict(task.params, batch).sums["loss"][:37], error, rtol=1e-4, atol=1e-7)
    rho = [scipy.stats.spearmanr(c, said[:37])[0] for c in cosine]
    np.testing.assert_allclose([before.metrics["spearman"], after.metrics["spearman"]], rho, atol=1e-5)
    left = [[scipy.stats.spearmanr(np.delete(c, i), np.delete(said[:37], i))[0] for i in range(37)] for c in cosine]
    change = np.array(left[1]) - np.array(left[0])
    expected = np.sqrt(36 / 37 * np.square(change - change.mean()).sum())  # the jackknife's error of the difference
    np.testing.assert_allclose(paired_error(before.parts, after.parts, before.n_examples), expected * np.sqrt(36 / 37), rtol=1e-3)
