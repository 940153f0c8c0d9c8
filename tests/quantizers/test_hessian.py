"""The gradient scale of EWGS on functions whose Hessian is known, and its guards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.quantizers import REASONS, hessian_delta

rng = np.random.default_rng(2)
KEY = jax.random.key(3)


def test_a_quadratic_with_a_known_trace():
    """A diagonal Hessian has no variance: each ``v^T H v`` is the trace."""
    diagonal, x = rng.uniform(0.1, 1, 50).astype(np.float32), rng.normal(size=50).astype(np.float32)
    delta, info = jax.jit(lambda x: hessian_delta(lambda x: 0.5 * jnp.sum(diagonal * x**2), x, KEY, samples=2))(x)
    np.testing.assert_allclose(info.trace, diagonal.sum(), rtol=1e-5)
    np.testing.assert_allclose(info.gradient_std, (diagonal * x).std(), rtol=1e-5)
    np.testing.assert_allclose(delta, diagonal.mean() / (3 * (diagonal * x).std()), rtol=1e-5)
    assert REASONS[int(info.reason)] == "measured"


def test_a_full_matrix_within_the_estimate_and_leaf_by_leaf():
    a, b = (m @ m.T / 20 for m in rng.normal(size=(2, 20, 20)).astype(np.float32))
    x = {"a": jnp.asarray(rng.normal(size=20) * 3, jnp.float32), "b": jnp.asarray(rng.normal(size=20) * 3, jnp.float32)}
    _, info = jax.jit(lambda x: hessian_delta(lambda x: 0.5 * (x["a"] @ a @ x["a"] + x["b"] @ b @ x["b"]), x, KEY, samples=2000))(x)
    np.testing.assert_allclose(info.trace["a"], np.trace(a), rtol=0.05)
    np.testing.assert_allclose(info.trace["b"], np.trace(b), rtol=0.05)


@pytest.mark.parametrize(
    ("loss", "x", "expected", "reason"),
    [
        (lambda x: -0.5 * jnp.sum(x**2), [1.0, 2.0], 0.0, "negative trace: delta is 0"),
        (lambda x: jnp.sum(jnp.sqrt(x)), [0.0, 1.0], 1e-3, "not finite: the fallback is used"),
        (lambda x: jnp.sum(0 * x), [1.0, 2.0], 1e-3, "no gradients: the fallback is used"),
        (lambda x: jnp.sum(x**2), [1.0, 1.0], 1e-3, "no gradients: the fallback is used"),
        (lambda x: 50 * jnp.sum(x**2), [1.0, 1.001], 1.0, "too large: cut to max_delta"),
        (lambda x: jnp.sum(x) * jnp.nan, [1.0, 2.0], 1e-3, "not finite: the fallback is used"),
    ],
)
def test_guards(loss, x, expected, reason):
    delta, info = jax.jit(lambda x: hessian_delta(loss, x, KEY))(jnp.array(x))
    assert float(delta) == pytest.approx(expected)
    assert REASONS[int(info.reason)] == reason


@pytest.mark.parametrize(
    ("kwargs", "x", "message"),
    [
        ({"samples": 0}, jnp.ones(2), "samples must be at least 1, got 0"),
        ({"max_delta": np.inf}, jnp.ones(2), "max_delta must be finite"),
        ({"fallback": -1.0}, jnp.ones(2), "fallback must be finite and at least 0, got -1.0"),
        ({}, {}, "no arrays"),
        ({}, jnp.arange(3), "floating-point arrays, got int32"),
    ],
)
def test_bad_input(kwargs, x, message):
    with pytest.raises(ValueError, match=message):
        hessian_delta(lambda x: jnp.sum(x**2), x, KEY, **kwargs)
