"""Importance of weights against the Jacobian written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity.importance import output_importance

rng = np.random.default_rng(1)
X = rng.standard_normal((12, 3)).astype(np.float32)
PARAMS = {
    "hidden": jnp.asarray(rng.standard_normal((3, 4)), jnp.float32),
    "out": jnp.asarray(rng.standard_normal((4, 2)), jnp.float32),
    "step": jnp.asarray(3),
}


def outputs(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def exact():
    """Sum over outputs of the squared derivatives, a mean over examples, from the whole Jacobian."""
    jacobian = jax.jacrev(lambda p: outputs({**PARAMS, **p}, X))({n: PARAMS[n] for n in ("hidden", "out")})
    return {name: np.square(j).sum((0, 1)) / len(X) for name, j in jacobian.items()}


def test_estimates_the_diagonal_of_the_jacobians_square():
    found = output_importance(outputs, PARAMS, [X[:8], X[8:]], key=jax.random.key(0), draws=600)
    for name, expected in exact().items():
        # One draw of a batch deviates by up to root 2, all of them by some 4 %.
        np.testing.assert_allclose(found[name], expected, rtol=0.2)
    assert set(found) == {"hidden", "out"}


def test_a_dense_layer_with_one_output_gets_the_mean_square_of_its_inputs():
    found = output_importance(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 1))}, [X], key=jax.random.key(0), draws=800)
    np.testing.assert_allclose(found["w"][:, 0], np.square(X).mean(0), rtol=0.2)


def test_the_same_key_gives_the_same_and_another_key_another():
    a, b, c = (
        output_importance(outputs, PARAMS, [X], key=jax.random.key(k), draws=1, names=["hidden"])["hidden"] for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_only_the_named_leaves_are_taken():
    assert set(output_importance(outputs, PARAMS, [X], key=jax.random.key(0), names=["out"])) == {"out"}


def test_small_batches_estimate_the_same():
    found = output_importance(outputs, PARAMS, [X], key=jax.random.key(0), draws=500, examples=2)
    for name, expected in exact().items():
        np.testing.assert_allclose(found[name], expected, rtol=0.15)


def test_padding_that_is_masked_adds_nothing():
    masked = np.concatenate([X, X]), np.arange(24) < 12

    def outputs_of(params, batch):
        return jnp.where(batch[1][:, None], outputs(params, batch[0]), 0)

    with_padding = output_importance(outputs_of, PARAMS, [masked], key=jax.random.key(0), draws=600, names=["out"])["out"]
    # Padding counts as examples: all leaves shrink alike, which changes no comparison between weights.
    np.testing.assert_allclose(with_padding * 2, exact()["out"], rtol=0.25)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batches": []}, "no batches"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"examples": 0}, "examples must be at least 1"),
        ({"names": ["nope"]}, "no leaf is named 'nope'"),
        ({"outputs": lambda p, x: jnp.sqrt(p["out"] - p["out"]).sum() * x}, "NaN or infinite"),
    ],
)
def test_bad_input_is_named(change, match):
    arguments = {"outputs": outputs, "params": PARAMS, "batches": [X], "key": jax.random.key(0), **change}
    with pytest.raises(ValueError, match=match):
        output_importance(**arguments)
