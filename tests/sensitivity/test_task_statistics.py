"""Statistics of a task: those of its calibration data, taken once for all methods of a comparison."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.task import Task
from bqjax.sensitivity.curvature import output_curvature
from bqjax.sensitivity.importance import output_importance
from bqjax.sensitivity.task_statistics import task_curvature, task_gradient, task_importance

rng = np.random.default_rng(0)
PARAMS = {"first": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "last": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
CALIBRATION, TEST = ([{"inputs": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)} for _ in range(2)] for _ in range(2))
KEY = jax.random.key(3)


def outputs(params, batch):
    return jnp.tanh(batch["inputs"] @ params["first"]) @ params["last"]


def score(params, batch):
    return {"loss": jnp.square(outputs(params, batch)).sum()}, jnp.float32(len(batch["inputs"]))


@pytest.fixture(scope="module")
def task():
    return Task(
        name="toy", params=PARAMS, score=score, calibration=CALIBRATION, test=TEST, outputs=outputs, metric="-loss", rank_by="-loss"
    )


def test_the_curvature_is_that_of_the_calibration_data(task):
    found, expected = task_curvature(task, key=KEY), output_curvature(outputs, PARAMS, CALIBRATION, key=KEY)
    x = np.concatenate([b["inputs"] for b in CALIBRATION])
    np.testing.assert_allclose(found["first"].inputs[0], x.T @ x / len(x), rtol=1e-5)
    for name in PARAMS:
        np.testing.assert_array_equal(found[name].inputs, expected[name].inputs)
        np.testing.assert_array_equal(found.importance[name], expected.importance[name])
    found.check(PARAMS)


def test_what_was_measured_is_kept_as_long_as_the_task(task):
    first = task_curvature(task, key=KEY)
    assert task_curvature(task, key=KEY) is first
    assert task_curvature(task, key=KEY, max_width=3) is not first
    assert task_curvature(task, key=KEY, max_width=3)["first"].inputs.shape == (2, 3, 3)


def test_importance_and_gradient_are_those_of_the_calibration_data_and_cannot_be_written_to(task):
    found, expected = task_importance(task, key=KEY, draws=2), output_importance(outputs, PARAMS, CALIBRATION, key=KEY, draws=2)
    gradient = jax.grad(lambda p: sum(score(p, b)[0]["loss"] for b in CALIBRATION) / 16)(PARAMS)
    for name in PARAMS:
        np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_allclose(np.abs(task_gradient(task)[name]), np.abs(gradient[name]), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="read-only"):
            found[name][0] = 1


def test_a_task_without_outputs_is_named():
    blind = Task(name="blind", params=PARAMS, score=score, calibration=CALIBRATION, test=TEST, metric="-loss", rank_by="-loss")
    with pytest.raises(ValueError, match="'blind' has no outputs, which the curvature"):
        task_curvature(blind, key=KEY)
    with pytest.raises(ValueError, match="'blind' has no outputs, which the importance"):
        task_importance(blind, key=KEY, draws=1)
