"""Statistics of weights against their definitions, and the figure that compares them with random halves."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import forward, tiny_task
from tiny_sweep import CONFIG

from bqjax.core.classification import classification_outputs
from bqjax.experiment import StatisticsAgainstRandom, run_sweep
from bqjax.experiment.statistics import curvature_diagonal, fisher_diagonal, weight_statistics
from bqjax.experiment.sweep import compare_halves
from bqjax.report.sweep import comparison_text, sweep_json
from bqjax.sensitivity.curvature import output_curvature
from bqjax.sensitivity.perturb import NoiseCandidate

KEY = jax.random.key(0)
OUTPUTS = classification_outputs(forward)
FIGURE = StatisticsAgainstRandom(sigma=0.3, draws=4, largest=1)


def small():
    task = tiny_task()
    return task.params, task.calibration[:1]


def test_the_fisher_diagonal_is_the_expected_square_of_the_score():
    params, batches = small()
    x = batches[0]["inputs"][:32]

    def log_probability(kernel, x, y):
        return jax.nn.log_softmax(forward({**params, "head": {"kernel": kernel}}, x[None]))[0, y]

    kernel = jnp.asarray(params["head"]["kernel"])
    expected = np.zeros(kernel.shape)
    p = np.asarray(jax.nn.softmax(forward(params, x)))
    grad = jax.jit(jax.vmap(jax.grad(log_probability), (None, 0, None)))
    for y in range(3):
        expected += (p[:, y, None, None] * np.square(np.asarray(grad(kernel, x, y)))).mean(0)
    cut = [{name: array[:32] for name, array in batches[0].items()}]
    found = fisher_diagonal(OUTPUTS, params, cut, key=KEY, draws=400)["head/kernel"]
    np.testing.assert_allclose(found, expected, rtol=0.35, atol=0.02 * expected.max())
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    with pytest.raises(ValueError, match=r"needs logits \[n, c\]"):
        fisher_diagonal(lambda p, b: OUTPUTS(p, b)[:, 0], params, cut, key=KEY)


def test_the_curvatures_diagonal_is_that_of_the_kronecker_product():
    params, batches = small()
    curvature = output_curvature(OUTPUTS, params, batches, key=KEY)
    own = curvature["head/kernel"]
    expected = np.diagonal(np.kron(np.diag(own.outputs[0]), own.inputs[0])).reshape(own.outputs.shape[1], -1).T
    found = curvature_diagonal(curvature)
    np.testing.assert_allclose(found["head/kernel"], expected, rtol=1e-5)
    assert found.keys() == curvature.importance.keys()


def test_each_series_takes_the_half_of_its_own_statistic(tmp_path):
    task = tiny_task(outputs=OUTPUTS)
    state = tmp_path / "state"
    found = run_sweep(replace(CONFIG, figures=(FIGURE,)), task, state_path=state)
    (rows,) = found.figures
    assert rows.series == ["random", "gradient", "fisher", "outputs", "curvature"]
    context = weight_statistics(task, FIGURE.statistics, KEY, state)
    w = jnp.asarray(task.params["hidden"]["kernel"])
    for row in rows.rows[1:]:
        statistic = row.candidate.tags["by"]
        noise, own = row.candidate.perturbation, context["hidden/kernel"]
        point = NoiseCandidate(np.float32(-np.inf), np.float32(np.inf), np.float32(0.3), KEY)
        changed = np.flatnonzero(np.asarray(noise(w, point, own) != w))
        assert set(changed) == set(np.argsort(-np.abs(own[statistic]).reshape(-1), kind="stable")[:60])
        assert compare_halves(rows, statistic).layers == 1
        with pytest.raises(ValueError, match=f"takes the weights by '{statistic}'"):
            noise(w, point, None)
    assert comparison_text(rows).count("of 1 layers") == 4 and "ranked highest by fisher" in comparison_text(rows)
    assert '"fisher": {' in sweep_json(found, "x")


def test_statistics_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match="has no outputs, which fisher, curvature are taken from"):
        weight_statistics(tiny_task(), ("gradient", "fisher", "curvature"), KEY)
    with pytest.raises(ValueError, match="a statistic is one of gradient, fisher, outputs, curvature, got 'hessian'"):
        StatisticsAgainstRandom(statistics=("hessian",))
    with pytest.raises(ValueError, match="has no statistics"):
        StatisticsAgainstRandom(statistics=())
