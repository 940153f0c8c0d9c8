"""Fake quantization with learnable intervals: weights and activations to [0, 1], rounded, and back.

A layer's quantizer is a dict of scalars, all learnable: ``weight_lower``, ``weight_upper``, ``activation_lower``,
``activation_upper`` and ``scale``, the layer's output scale. With them

    x_n = clip((x - l) / (u - l), 0, 1),  weights: w_q = 2 round(w_n) - 1,  activations: a_q = round(a_n),

and the layer computes ``scale * conv(a_q, w_q) + bias``. Here the scale is multiplied into the quantized weights, which
gives the same output and the same gradients.

References:
  Lee, Kim, Ham. Network Quantization with Element-wise Gradient Scaling. CVPR 2021, section 3.1 and its code,
  https://github.com/cvlab-yonsei/EWGS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bqjax.quantizers.config import QuantizerConfig
from bqjax.quantizers.rounding import irnet_round, round_unit

__all__ = [
    "fake_quantize_activations",
    "fake_quantize_weights",
    "libra_parameter_binarization",
    "rounded_weights",
    "start_activations",
    "start_weights",
]

# Learned ends may meet or cross; without a floor the quotient would overflow and the network would be lost.
_MIN_WIDTH = 1e-6

Scalars = Mapping[str, Any]


def start_weights(weights: jax.Array, config: QuantizerConfig) -> dict[str, jax.Array]:
    """Starts of a weight quantizer: the interval ``+-3 std(w)`` (or ``+-max |w|``), and the scale that maps [-1, 1] back to it.

    Args:
      weights: ``[...]``.
      config: of the layer.

    Returns:
      ``weight_lower`` and ``weight_upper`` (absent where weights are not quantized, and for IR-Net, which has no
      interval) and ``scale``, float32 scalars.

    Example:
      >>> start = start_weights(jnp.array([-1.0, 1.0]), QuantizerConfig())
      >>> {name: float(value) for name, value in start.items()}
      {'weight_lower': -3.0, 'weight_upper': 3.0, 'scale': 3.0}
    """
    weights = jnp.asarray(weights, jnp.float32)
    std = jnp.std(weights)
    upper = jnp.maximum(jnp.max(jnp.abs(weights)) if config.weight_start == "range" else 3 * std, _MIN_WIDTH)
    if config.weight_bits is None:
        return {"scale": jnp.ones(())}
    if config.rounding == "irnet":
        return {"scale": jnp.maximum(std, _MIN_WIDTH)}
    return {"weight_lower": -upper, "weight_upper": upper, "scale": upper}


def start_activations(activations: jax.Array, config: QuantizerConfig) -> dict[str, jax.Array]:
    """Starts of an activation quantizer: the interval ``[min(a), 3 std(a) / sqrt(1 - 2 / pi)]``.

    The second is three standard deviations of the normal distribution whose half the activations are after a relu. With
    ``activation_start="mse"`` it is instead that of 49 ends, each 2^(-1/8) of the one before from ``max(a)`` on, at which the
    squared error of the quantized activations is least.

    Args:
      activations: ``[...]``, the layer's inputs for a batch.
      config: of the layer.

    Returns:
      ``activation_lower`` and ``activation_upper``, float32 scalars; nothing where activations are not quantized.

    Raises:
      ValueError: ``activations`` is empty or holds NaN or infinities.
    """
    if config.activation_bits is None:
        return {}
    activations = jnp.asarray(activations, jnp.float32)
    if not activations.size:
        raise ValueError(f"an interval needs activations, got an empty array of shape {activations.shape}")
    if not isinstance(activations, jax.core.Tracer) and not bool(jnp.isfinite(activations).all()):
        raise ValueError("the activations hold NaN or infinite values: check the batch and the weights of the network")
    lower = jnp.min(activations)
    if config.activation_start == "mse":
        upper = _least_error(activations, lower, config.activation_bits)
    else:
        upper = 3 * jnp.std(activations) / math.sqrt(1 - 2 / math.pi)
    return {"activation_lower": lower, "activation_upper": jnp.maximum(upper, lower + _MIN_WIDTH)}


@partial(jax.jit, static_argnames="bits")
def _least_error(x: jax.Array, lower: jax.Array, bits: int) -> jax.Array:
    ends = lower + (jnp.max(x) - lower) * 2.0 ** (-jnp.arange(49) / 8)

    def error(upper: jax.Array) -> jax.Array:
        width, steps = jnp.maximum(upper - lower, _MIN_WIDTH), 2**bits - 1
        return jnp.mean((x - lower - width * jnp.round(jnp.clip((x - lower) / width, 0, 1) * steps) / steps) ** 2)

    return ends[jnp.argmin(jax.lax.map(error, ends))]


def fake_quantize_weights(
    weights: jax.Array,
    quantizer: Scalars,
    config: QuantizerConfig,
    *,
    delta: jax.Array | float | None = None,
    progress: jax.Array | float = 0.0,
) -> jax.Array:
    """Fake-quantized weights: ``scale * (2 round(clip((w - l) / (u - l), 0, 1)) - 1)``.

    Args:
      weights: ``[...]`` floating point, output channels last.
      quantizer: the layer's scalars, see the module.
      config: of the layer.
      delta, progress: as in :func:`~bqjax.quantizers.rounding.round_unit`.

    Returns:
      ``[...]`` of at most ``2^weight_bits`` values (for IR-Net, ``2`` for each output channel), of the dtype of ``weights``.

    Raises:
      ValueError: as :func:`~bqjax.quantizers.rounding.round_unit`.
    """
    scale = jnp.asarray(quantizer["scale"], weights.dtype)
    if config.weight_bits is None:
        return scale * weights
    if config.rounding == "irnet":
        return scale * libra_parameter_binarization(weights, progress)
    return scale * (2 * rounded_weights(weights, quantizer, config, delta=delta, progress=progress) - 1)


def rounded_weights(
    weights: jax.Array,
    quantizer: Scalars,
    config: QuantizerConfig,
    *,
    delta: jax.Array | float | None = None,
    progress: jax.Array | float = 0.0,
) -> jax.Array:
    """Weights on the grid of their bits, before they are put back into units: ``round(clip((w - l) / (u - l), 0, 1))``.

    Args:
      weights: ``[...]`` floating point.
      quantizer: the layer's scalars, see the module.
      config: of the layer; its weights are quantized in an interval, which those of IR-Net are not.
      delta, progress: as in :func:`~bqjax.quantizers.rounding.round_unit`.

    Returns:
      ``[...]`` in [0, 1], of the dtype of ``weights``.

    Raises:
      ValueError: the config has no interval of weights; as :func:`~bqjax.quantizers.rounding.round_unit`.

    Example:
      >>> quantizer = {"weight_lower": jnp.float32(-1), "weight_upper": jnp.float32(1)}
      >>> rounded_weights(jnp.array([-3.0, -0.2, 0.4]), quantizer, QuantizerConfig(weight_bits=1)).tolist()
      [0.0, 0.0, 1.0]
    """
    if config.weight_bits is None or config.rounding == "irnet":
        raise ValueError(f"weights have no interval with weight_bits={config.weight_bits} and rounding {config.rounding!r}")
    unit = _unit(weights, quantizer["weight_lower"], quantizer["weight_upper"])
    return round_unit(unit, config.weight_bits, config, delta=delta, progress=progress)


def fake_quantize_activations(
    activations: jax.Array,
    quantizer: Scalars,
    config: QuantizerConfig,
    *,
    delta: jax.Array | float | None = None,
    progress: jax.Array | float = 0.0,
) -> jax.Array:
    """Fake-quantized activations, in units of their interval's width: ``round(clip((a - l) / (u - l), 0, 1))``.

    With ``config.keep_offset``, ``l / (u - l)`` is added, so that zero stays zero up to rounding (and with it padding).

    Args:
      activations: ``[...]`` floating point.
      quantizer: the layer's scalars, see the module.
      config: of the layer.
      delta, progress: as in :func:`~bqjax.quantizers.rounding.round_unit`.

    Returns:
      ``[...]`` of at most ``2^activation_bits`` values, of the dtype of ``activations``.

    Raises:
      ValueError: as :func:`~bqjax.quantizers.rounding.round_unit`.
    """
    if config.activation_bits is None:
        return activations
    lower, upper = quantizer["activation_lower"], quantizer["activation_upper"]
    unit = _unit(activations, lower, upper)
    rounded = round_unit(unit, config.activation_bits, config, delta=delta, progress=progress)
    if config.keep_offset:
        rounded = rounded + (lower / jnp.maximum(upper - lower, _MIN_WIDTH)).astype(rounded.dtype)
    return rounded


def libra_parameter_binarization(weights: jax.Array, progress: jax.Array | float = 0.0) -> jax.Array:
    """Libra parameter binarization (IR-Net): weights that are balanced, standardised, and with a power of two as their magnitude.

    For each output channel, ``w_hat = (w - mean(w)) / std(w)``, ``s = round(log2(mean |w_hat|))`` and
    ``w_q = sign(w_hat) 2^s``; ``s`` gets no gradient, the sign that of the error decay estimator.

    Args:
      weights: ``[..., channels]`` floating point.
      progress: share of training that is done, 0 to 1.

    Returns:
      ``[..., channels]``, of the dtype of ``weights``.

    References:
      Qin et al. Forward and Backward Information Retention for Accurate Binary Neural Networks. CVPR 2020, equations 6
      to 9 and 10 to 12. https://arxiv.org/abs/1909.10788

    Example:
      >>> libra_parameter_binarization(jnp.array([[1.0], [2.0], [6.0], [7.0]]))[:, 0].tolist()
      [-1.0, -1.0, 1.0, 1.0]
    """
    axes = tuple(range(weights.ndim - 1))
    centred = weights - jnp.mean(weights, axis=axes, keepdims=True)
    # Not jnp.std: its gradient is NaN where all weights of a channel are equal.
    variance = jnp.mean(centred**2, axis=axes, keepdims=True)
    standard = centred / jnp.sqrt(variance + 1e-12)
    magnitude = jnp.mean(jnp.abs(standard), axis=axes, keepdims=True)
    shift = jnp.round(jnp.log2(jnp.maximum(jax.lax.stop_gradient(magnitude), _MIN_WIDTH)))
    return (2 * irnet_round((standard + 1) / 2, 1, progress) - 1) * 2**shift


def _unit(x: jax.Array, lower: Any, upper: Any) -> jax.Array:
    """``clip((x - l) / (u - l), 0, 1)``; outside of the interval no gradient reaches ``x``, ``l`` or ``u``."""
    width = jnp.maximum(jnp.asarray(upper) - jnp.asarray(lower), _MIN_WIDTH)
    return jnp.clip((x - jnp.asarray(lower, x.dtype)) / width.astype(x.dtype), 0, 1)
