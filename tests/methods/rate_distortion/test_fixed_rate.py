"""Fixed numbers of bits on the same curvature: less error of the outputs than rounding, and what they store."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import Affine, Clustered, decode
from bqjax.core.task import Task
from bqjax.methods import ErrorFeedback, WeightedKMeans
from bqjax.methods.rate_distortion.fixed_rate import quantize_by_feedback, share_by_importance
from bqjax.sensitivity.curvature import output_curvature

rng = np.random.default_rng(0)
X = np.asarray(rng.normal(size=(64, 12)) @ rng.normal(size=(12, 12)), np.float32)
PARAMS = {"w": np.asarray(rng.normal(size=(8, 12)), np.float32), "gate": np.asarray(rng.normal(size=(1, 8)), np.float32)}


def outputs(params, x):
    return (x @ params["w"].T) * params["gate"]


@pytest.fixture(scope="module")
def curvature():
    return output_curvature(outputs, PARAMS, [X], key=jax.random.key(0), draws=4)


def lost(tree):
    return float(jnp.square(outputs(decode(tree), X) - outputs(PARAMS, X)).sum())


def test_feedback_loses_less_than_rounding_on_the_same_grid(curvature):
    tree = quantize_by_feedback(PARAMS, curvature, 3)
    leaf = tree["w"]
    assert isinstance(leaf, Affine) and leaf.axis == 0 and leaf.scale.shape == (8,) and leaf.bits == 3 and leaf.codes.max() <= 7
    leaf.validate("w")
    scale, zero = leaf.scale[:, None], leaf.zero_point[:, None]
    nearest = np.clip(np.rint(PARAMS["w"] / scale) + zero, 0, 7).astype(np.uint8)
    rounded = {**tree, "w": Affine(nearest, leaf.scale, leaf.zero_point, 0, np.float32, 3)}
    assert lost(tree) < 0.7 * lost(rounded)
    # A leaf that enters no product is rounded, on one scale.
    gate = tree["gate"]
    assert gate.axis is None and np.abs(np.asarray(gate.decode()) - PARAMS["gate"]).max() <= gate.scale


def test_kernels_with_outputs_last_have_a_scale_a_column(curvature):
    kernel = {"w": PARAMS["w"].T.copy()}
    found = output_curvature(lambda p, x: x @ p["w"], kernel, [X], key=jax.random.key(0))
    tree = quantize_by_feedback(kernel, found, 8)
    assert tree["w"].axis == 1
    np.testing.assert_allclose(tree["w"].decode(), kernel["w"], atol=0.05)


def test_weighted_k_means_prefers_what_matters(curvature):
    tree = share_by_importance(PARAMS, curvature, 4)
    assert isinstance(tree["w"], Clustered) and tree["w"].k <= 4
    tree["w"].validate("w")
    importance = curvature.importance["w"]

    def weighed(leaf):
        return float((importance * np.square(np.asarray(leaf.decode()) - PARAMS["w"])).sum())

    alike = dataclasses.replace(curvature, importance={name: np.ones_like(x) for name, x in PARAMS.items()})
    plain = share_by_importance(PARAMS, alike, 4)
    assert weighed(tree["w"]) < weighed(plain["w"])


def test_as_methods_of_a_task(curvature):
    def score(params, x):
        return {"loss": jnp.square(outputs(params, x) - outputs(PARAMS, x)).sum()}, jnp.float32(len(x))

    task = Task(name="toy", params=PARAMS, score=score, calibration=[X], test=[X], metric="-loss", outputs=outputs)
    for method in (ErrorFeedback(bits=4), WeightedKMeans(k=8)):
        tree = method.compress(task, key=jax.random.key(0)).tree
        assert 0 < lost(tree) < 1e4
    with pytest.raises(ValueError, match="bits must be from 2 to 8"):
        ErrorFeedback(bits=9)
    with pytest.raises(ValueError, match="of other parameters"):
        quantize_by_feedback({**PARAMS, "w": PARAMS["w"] + 1}, curvature, 4)
