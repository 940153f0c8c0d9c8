"""What has no curvature is listed with the reason; what cannot be meant is an error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity.curvature import output_curvature

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
PARAMS = {"w": jnp.ones((4, 4)), "other": jnp.ones((4, 4)), "step": jnp.asarray(3)}


def curvature(outputs, batches=(X,), params=PARAMS, **settings):
    return output_curvature(outputs, params, list(batches), key=jax.random.key(0), draws=1, **settings)


LEFT = {
    "unused": (lambda p, x: x @ p["w"], "is not what the outputs depend on"),
    "dead": (lambda p, x: (x @ p["w"], x @ p["other"])[0], "is not what the outputs depend on"),
    "non-linear": (lambda p, x: x @ p["w"] @ jnp.tanh(p["other"]), "goes through 'tanh'"),
    "both": (lambda p, x: x @ p["w"] @ p["other"] + p["other"].sum(), "goes through 'reduce_sum'"),
    "two leaves": (lambda p, x: x @ (p["w"].T @ p["other"]), "is multiplied with a leaf"),
    "carried": (
        lambda p, x: x @ p["w"] @ jax.lax.scan(lambda w, _: (w * 1, None), p["other"], None, length=2)[0],
        "is carried through a scan",
    ),
    "result": (lambda p, x: p["other"], "is a result by itself"),
    "zeros": (lambda p, x: x @ p["w"] + jnp.zeros((6, 4)) @ p["other"], "has inputs that are 0"),
    "constant": (lambda p, x: x @ p["w"] + jnp.ones((6, 4)) @ p["other"], "are the same at all 6 positions"),
}


@pytest.mark.parametrize("case", LEFT)
def test_a_leaf_without_a_curvature_is_listed(case):
    outputs, reason = LEFT[case]
    found = curvature(outputs)
    assert reason in found.left["other"]
    assert found.importance["other"].shape == (4, 4)
    assert set(found) | set(found.left) == {"w", "other"} and not set(found) & set(found.left)
    with pytest.raises(KeyError, match="no curvature"):
        found["other"]


def test_one_example_says_nothing_of_a_dense_layer():
    found = curvature(lambda p, x: x @ p["w"], [X[:1]])
    assert "the same at all 1 positions" in found.left["w"]


def test_only_the_named_leaves_are_taken():
    found = curvature(lambda p, x: x @ p["w"] @ p["other"], names=["other"])
    assert list(found) == list(found.importance) == ["other"] and not found.left


def test_another_networks_curvature_is_refused():
    found = curvature(lambda p, x: x @ p["w"])
    found.check(PARAMS)
    with pytest.raises(ValueError, match="curvature of other parameters"):
        found.check({**PARAMS, "w": 2 * PARAMS["w"]})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batches": []}, "no batches"),
        ({"batches": [{"inputs": X, "mask": np.zeros(6)}]}, "every example has mask 0"),
        ({"names": ["nope"]}, "no leaf is named 'nope'"),
        ({"names": ["step"]}, "leaf 'step' is no floating-point array"),
        ({"examples": 0}, "examples must be at least 1, got 0"),
        ({"positions": 0}, "positions must be at least 1, got 0"),
        ({"max_width": -1}, "max_width must be at least 1, got -1"),
        ({"batches": [np.where(X > 1, np.nan, X)]}, "'w' are NaN or infinite"),
    ],
)
def test_bad_input_is_named(change, match):
    with pytest.raises(ValueError, match=match):
        curvature(lambda p, x: x @ p["w"], **change)
