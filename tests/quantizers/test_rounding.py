"""Rounding with a gradient, against formulas written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.quantizers import QuantizerConfig, dsq_round, ewgs_round, irnet_round, round_unit, ste_round

rng = np.random.default_rng(0)
X = rng.uniform(0, 1, (7, 40)).astype(np.float32)
G = rng.normal(size=X.shape).astype(np.float32)


def value_and_gradient(function):
    value, back = jax.vjp(function, jnp.asarray(X))
    return np.asarray(value), np.asarray(back(jnp.asarray(G))[0])


def level(bits):
    return np.rint(X.astype(np.float64) * (2**bits - 1)) / (2**bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("delta", [1e-3, 0.2, 1.0])
def test_ewgs(bits, delta):
    value, gradient = value_and_gradient(lambda x: ewgs_round(x, bits, delta))
    expected = level(bits)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)
    g = G.astype(np.float64)
    np.testing.assert_allclose(gradient, g * (1 + delta * np.sign(g) * (X - expected)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_without_scaling_ewgs_is_straight_through_to_the_bit(bits):
    ewgs, ste = (value_and_gradient(f) for f in (lambda x: ewgs_round(x, bits, 0.0), lambda x: ste_round(x, bits)))
    np.testing.assert_array_equal(ewgs[0], ste[0])
    np.testing.assert_array_equal(ewgs[1], ste[1])
    np.testing.assert_array_equal(ste[1], G)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.7])
def test_dsq(bits, alpha):
    value, gradient = value_and_gradient(lambda x: dsq_round(x, bits, alpha))
    np.testing.assert_allclose(value, level(bits), rtol=0, atol=1e-6)
    x, width = X.astype(np.float64), 1 / (2**bits - 1)
    middle = (np.floor(x / width) + 0.5) * width
    k = np.log(2 / alpha - 1) / width
    s = 1 / np.tanh(0.5 * k * width)
    slope = width * s * k * (1 - np.tanh(k * (x - middle)) ** 2) / 2
    np.testing.assert_allclose(gradient, G * slope, rtol=2e-4, atol=1e-5)


def test_dsq_learns_how_soft_it_is():
    """Against a difference quotient of the soft value, which is what the gradient is of."""

    def soft(alpha, x=0.3):
        return (np.tanh(np.log(2 / alpha - 1) * (x - 0.5)) / (1 - alpha) + 1) / 2

    found = jax.grad(lambda alpha: dsq_round(jnp.float32(0.3), 1, alpha))(0.2)
    np.testing.assert_allclose(found, (soft(0.2 + 1e-5) - soft(0.2 - 1e-5)) / 2e-5, rtol=1e-3)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_irnet(progress):
    value, gradient = value_and_gradient(lambda x: irnet_round(x, 1, progress))
    np.testing.assert_array_equal(value, X >= 0.5)
    t = 10 ** (-1 + 2 * progress)
    signed = 2 * X.astype(np.float64) - 1
    slope = max(1 / t, 1) * t * (1 - np.tanh(t * signed) ** 2)
    np.testing.assert_allclose(gradient, G * slope, rtol=1e-4, atol=2e-5)  # 1 - tanh^2 cancels in float32


@pytest.mark.parametrize("rounding", ["ewgs", "ste", "dsq", "irnet"])
def test_one_interface_one_value(rounding):
    config = QuantizerConfig(weight_bits=1, activation_bits=4, rounding=rounding, delta=0.3)
    for bits in (1, 4):
        value, gradient = value_and_gradient(jax.jit(lambda x, bits=bits: round_unit(x, bits, config, progress=0.5)))
        np.testing.assert_allclose(value, level(bits), rtol=0, atol=1e-6)
        assert np.isfinite(gradient).all()
    default = value_and_gradient(lambda x: round_unit(x, 4, config))
    other = value_and_gradient(lambda x: round_unit(x, 4, config, delta=0.9))
    assert np.array_equal(default[1], other[1]) == (rounding != "ewgs")


def test_straight_through_twice():
    """Curvature behind the rounding is seen, which measuring the Hessian of a quantized network needs."""
    hessian = jax.hessian(lambda x: jnp.sum(ste_round(x, 2) ** 3))(jnp.array([0.4, 0.9]))
    np.testing.assert_allclose(hessian, np.diag(6 * np.array([1 / 3, 1])), rtol=1e-6)


def test_traced_delta_under_jit_and_vmap():
    grads = jax.jit(jax.vmap(jax.grad(lambda x, d: ewgs_round(x, 1, d)), in_axes=(None, 0)))(
        jnp.float32(0.25), jnp.array([0.0, 1.0])
    )
    np.testing.assert_allclose(grads, [1.0, 1.25])
    assert ewgs_round(jnp.ones(3, jnp.bfloat16), 8, 0.1).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ewgs_round(X, 0), "bits must be a whole number from 1 to 16, got 0"),
        (lambda: ste_round(X, 2.0), "bits must be a whole number from 1 to 16, got 2.0"),
        (lambda: ewgs_round(X, 2, -0.1), "delta must be from 0 to inf, got -0.1"),
        (lambda: ewgs_round(X, 2, np.nan), "delta must be from 0 to inf, got nan"),
        (lambda: ewgs_round(X, 2, np.ones(3)), r"delta must be a scalar, got shape \(3,\)"),
        (lambda: ste_round(np.arange(3), 2), "x must be floating point, got int"),
        (lambda: dsq_round(X, 2, 1.0), "alpha must be between 0 and 1, got 1.0"),
        (lambda: irnet_round(X, 2), "IR-Net rounds to one bit, got bits=2"),
        (lambda: irnet_round(X, 1, 1.5), "progress must be from 0 to 1, got 1.5"),
        (lambda: QuantizerConfig(weight_bits=None, activation_bits=None), "skip the layer by a rule"),
        (lambda: QuantizerConfig(weight_bits=17), "weight_bits must be a whole number from 1 to 16, got 17"),
        (lambda: QuantizerConfig(rounding="lsq"), "rounding must be one of ewgs, ste, dsq, irnet, got 'lsq'"),
        (lambda: QuantizerConfig(delta=-1.0), "delta must be finite"),
        (lambda: QuantizerConfig(dsq_alpha=0.0), "dsq_alpha must be above 0"),
        (lambda: QuantizerConfig(rounding="irnet"), "for weights of one bit, got weight_bits=8"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
