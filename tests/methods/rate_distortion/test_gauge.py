"""What leaves cost over what is predicted: known where the curvature is exact, or off by a factor that was put there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.task import Task
from bqjax.methods.rate_distortion import RateDistortion
from bqjax.methods.rate_distortion.gauge import gauged_curvature, measured_ratios
from bqjax.sensitivity.curvature import output_curvature

rng = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(rng.normal(size=(12, 16)), jnp.float32), "b": jnp.asarray(rng.normal(size=16), jnp.float32)}
BATCHES = [
    {"inputs": jnp.asarray(rng.normal(size=(64, 12)) + 0.5, jnp.float32), "mask": jnp.asarray(np.arange(64) < n, jnp.float32)}
    for n in (64, 40)
]


@jax.jit
def outputs(params, batch):
    """Linear in the leaf: the curvature is exact but for the draws of its importance."""
    return (batch["inputs"] @ params["w"] + params["b"][None]) * batch["mask"][:, None]


def score(params, batch):
    return {"loss": jnp.square(outputs(params, batch)).sum()}, batch["mask"].sum()


@pytest.fixture(scope="module")
def curvature():
    return output_curvature(outputs, PARAMS, BATCHES, key=jax.random.key(0), draws=64)


def test_an_exact_curvature_is_left_and_a_wrong_one_is_found_out(curvature):
    ratios = measured_ratios(outputs, PARAMS, BATCHES, curvature, examples=104)
    assert list(ratios) == ["w"] and ratios["w"] == pytest.approx(1, rel=0.15)
    # A curvature that is 16 times what it should be: the ratio says so, and one step goes half way in the logarithm.
    wrong = gauged_curvature(curvature, {"w": 256.0, "b": 256.0})
    np.testing.assert_allclose(wrong["w"].outputs, 16 * curvature["w"].outputs, rtol=1e-5)
    np.testing.assert_allclose(wrong.importance["b"], 16 * curvature.importance["b"], rtol=1e-5)
    found = measured_ratios(outputs, PARAMS, BATCHES, wrong, examples=104)
    assert found["w"] == pytest.approx(ratios["w"] / 16, rel=1e-3) or found["w"] == 0.1
    assert gauged_curvature(curvature, {})["w"].outputs is not None and curvature["w"].outputs.dtype == wrong["w"].outputs.dtype


def test_examples_bound_what_is_looked_at(curvature):
    asked = []

    def watched(params, batch):
        asked.append(float(batch["mask"].sum()))
        return outputs(params, batch)

    measured_ratios(watched, PARAMS, BATCHES, curvature, examples=10)
    assert set(asked) == {64.0}
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        measured_ratios(watched, PARAMS, BATCHES, curvature, examples=0)


def test_rows_of_a_task_share_them(curvature):
    task = Task(
        name="toy", params=PARAMS, score=score, calibration=BATCHES, test=BATCHES, outputs=outputs, metric="-loss", rank_by="-loss"
    )
    first, second = (
        RateDistortion(lmbda=p, draws=4, gauge=64).compress(task, key=jax.random.key(1)).info.ratios for p in (1e-3, 1e-2)
    )
    assert first == second and list(first) == ["w"]
    assert RateDistortion(lmbda=1e-3, draws=4).compress(task, key=jax.random.key(1)).info.ratios == {}
    with pytest.raises(ValueError, match="gauge must not be negative, got -1"):
        RateDistortion(lmbda=1e-3, gauge=-1)
