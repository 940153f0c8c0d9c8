"""Intervals, scales and IR-Net's weights, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.quantizers import (
    QuantizerConfig,
    fake_quantize_activations,
    fake_quantize_weights,
    libra_parameter_binarization,
    start_activations,
    start_weights,
)

rng = np.random.default_rng(1)
W = rng.normal(0, 0.1, (3, 3, 4, 8)).astype(np.float32)
A = np.maximum(rng.normal(0, 2, (16, 8, 8, 4)), 0).astype(np.float32)


def test_weights_keep_their_values_at_eight_bits():
    config = QuantizerConfig()
    start = start_weights(jnp.asarray(W), config)
    np.testing.assert_allclose(start["weight_upper"], 3 * W.std(), rtol=1e-5)
    assert start["weight_lower"] == -start["weight_upper"]
    out = fake_quantize_weights(jnp.asarray(W), start, config)
    clipped = np.clip(W, start["weight_lower"], start["weight_upper"])
    assert np.abs(out - clipped).max() <= 6 * W.std() / 255 / 2 * 1.001


def test_one_bit_weights_are_plus_or_minus_the_scale():
    config = QuantizerConfig(weight_bits=1)
    start = start_weights(jnp.asarray(W), config) | {"scale": jnp.float32(0.3)}
    np.testing.assert_allclose(fake_quantize_weights(jnp.asarray(W), start, config), np.where(W > 0, 0.3, -0.3), rtol=1e-6)


def test_activations_and_their_start():
    config = QuantizerConfig()
    start = start_activations(jnp.asarray(A), config)
    np.testing.assert_allclose(start["activation_upper"], 3 * A.std() / np.sqrt(1 - 2 / np.pi), rtol=1e-5)
    assert start["activation_lower"] == 0
    out = fake_quantize_activations(jnp.asarray(A), start, config) * start["activation_upper"]
    assert np.abs(out - np.minimum(A, start["activation_upper"])).max() <= start["activation_upper"] / 255 / 2 * 1.001


@pytest.mark.parametrize("bits", [1, 3])
def test_activations_start_where_the_error_is_least(bits):
    """Against a fine search in NumPy; the ends tried are 9 % apart, so that the error is near the least and not at it."""
    config = QuantizerConfig(activation_bits=bits, activation_start="mse")
    start = start_activations(jnp.asarray(A), config)

    def error(upper):
        return np.mean((A - upper * np.round(np.clip(A / upper, 0, 1) * (2**bits - 1)) / (2**bits - 1)) ** 2)

    best = min(error(upper) for upper in np.linspace(0.01, 1, 500) * A.max())
    assert best * 0.999 <= error(float(start["activation_upper"])) <= 1.02 * best
    assert start["activation_lower"] == A.min() == 0
    wide = start_activations(jnp.asarray(A), QuantizerConfig(activation_bits=bits))
    assert error(float(start["activation_upper"])) < error(float(wide["activation_upper"]))
    assert start_activations(jnp.zeros(3), config)["activation_upper"] > 0  # nothing to choose from


def test_negative_inputs_keep_their_offset_or_not():
    x, scalars = jnp.linspace(-1, 1, 21), {"activation_lower": jnp.float32(-1), "activation_upper": jnp.float32(1)}
    kept = fake_quantize_activations(x, scalars, QuantizerConfig())
    np.testing.assert_allclose(2 * kept, x, atol=0.005)
    plain = fake_quantize_activations(x, scalars, QuantizerConfig(keep_offset=False))
    assert plain.min() == 0
    assert plain.max() == 1


def test_gradients_of_the_interval_against_the_formula():
    """d/dl and d/du of ``round((w - l) / (u - l))`` straight through, inside of the interval; none from outside."""
    config, scale = QuantizerConfig(weight_bits=2, rounding="ste"), 0.7
    lower, upper = -0.12, 0.15
    start = {"weight_lower": jnp.float32(lower), "weight_upper": jnp.float32(upper), "scale": jnp.float32(scale)}
    g = rng.normal(size=W.shape).astype(np.float32)
    gradients = jax.jit(jax.grad(lambda w, s: jnp.sum(fake_quantize_weights(w, s, config) * g), argnums=(0, 1)))
    dw, ds = gradients(jnp.asarray(W), start)
    inside = (lower < W) & (upper > W)
    width = upper - lower
    np.testing.assert_allclose(dw, np.where(inside, 2 * scale * g / width, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ds["weight_lower"], np.sum(np.where(inside, 2 * scale * g * (W - upper) / width**2, 0)), rtol=1e-3)
    np.testing.assert_allclose(ds["weight_upper"], np.sum(np.where(inside, -2 * scale * g * (W - lower) / width**2, 0)), rtol=1e-3)
    levels = 2 * np.rint(np.clip((W - lower) / width, 0, 1) * 3) / 3 - 1
    np.testing.assert_allclose(ds["scale"], np.sum(levels * g), rtol=1e-3)


def test_an_interval_that_closed_or_crossed_stays_finite():
    config = QuantizerConfig()
    of = jax.jit(jax.value_and_grad(lambda s: jnp.sum(fake_quantize_weights(jnp.asarray(W), s, config))))
    for upper in (0.0, -1.0):
        value, grads = of({"weight_lower": jnp.zeros(()), "weight_upper": jnp.float32(upper), "scale": jnp.ones(())})
        assert np.isfinite(value)
        assert all(np.isfinite(g) for g in grads.values())
    constant = start_weights(jnp.zeros((3, 3)), config)
    assert np.isfinite(fake_quantize_weights(jnp.zeros((3, 3)), constant, config)).all()


def test_libra_parameter_binarization():
    w = W * np.array([1, 2, 5, 0.1, 1, 1, 1, 1], np.float32) + np.float32(0.3)
    centred = w - w.mean(axis=(0, 1, 2))
    standard = centred / centred.std(axis=(0, 1, 2))
    shift = np.rint(np.log2(np.abs(standard).mean(axis=(0, 1, 2))))
    np.testing.assert_allclose(jax.jit(libra_parameter_binarization)(w), np.sign(standard) * 2.0**shift)
    assert np.isfinite(jax.jit(jax.grad(lambda w: libra_parameter_binarization(w, 1.0)[0].sum()))(jnp.ones((3, 3, 2, 4)))).all()


def test_libra_gradient_at_the_end_of_training():
    """Through the sign ``g k t (1 - tanh(t w_hat)^2)``, then through mean and deviation, here by finite differences."""
    w = rng.normal(size=(6, 1))
    g = rng.normal(size=(6, 1))
    t = 10.0

    def smooth(w):
        standard = (w - w.mean()) / w.std()
        return np.sum(g * np.tanh(t * standard))

    expected = [(smooth(w + 1e-6 * np.eye(6)[:, [i]]) - smooth(w - 1e-6 * np.eye(6)[:, [i]])) / 2e-6 for i in range(6)]
    loss = lambda w: jnp.sum(jnp.asarray(g, jnp.float32) * libra_parameter_binarization(w, 1.0))  # noqa: E731
    found = jax.jit(jax.grad(loss))(jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-2, atol=1e-3)


def test_bad_activations():
    with pytest.raises(ValueError, match="empty array of shape"):
        start_activations(jnp.zeros((0, 3)), QuantizerConfig())
    with pytest.raises(ValueError, match="NaN or infinite"):
        start_activations(jnp.array([1.0, jnp.nan]), QuantizerConfig())
    assert start_activations(jnp.array([jnp.nan]), QuantizerConfig(activation_bits=None)) == {}
