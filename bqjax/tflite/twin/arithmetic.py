"""Fixed-point rescaling of 8-bit networks, bit for bit, in 32-bit integers.

An accumulator ``x`` becomes an output code by a real factor ``m 2^(shift - 31)``, ``m`` an int32 in ``[2^30, 2^31)``. The
product has 64 bits, which JAX has only under ``jax_enable_x64``: here it is put together from 16-bit halves.

Three roundings are in use, found by comparing each kernel on its own inputs. gemmlowp's functions (TFLite's reference
kernels, and additions, uint8 depthwise convolutions and pooling everywhere) round twice: to 31 bits halves up, and then to
the result halves away from 0. The matrix products of ruy on x86 (convolutions and dense layers of the optimised kernels) take
halves up in the second step too. So does the x86 vector code of int8 depthwise convolutions, 8 channels at a time, and of
QUANTIZE, 16 codes at a time; what such a loop leaves over is rounded as gemmlowp does. The reference kernel of dense int8
layers rounds the exact product once.

References:
  Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
  https://arxiv.org/abs/1712.05877, section 2.2. gemmlowp ``fixedpoint/fixedpoint.h``; ruy ``apply_multiplier.cc``; TensorFlow
  ``lite/kernels/internal/common.h`` and ``quantization_util.cc``.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["activation_range", "quantize_multiplier", "rescale_once", "rescale_twice", "round_away"]

Factors = tuple[np.ndarray, np.ndarray]


def quantize_multiplier(factor: float | np.ndarray) -> Factors:
    """Real factors as ``m 2^(shift - 31)``.

    Args:
      factor: at least 0, any shape, in double precision.

    Returns:
      ``(m, shift)``, int32 of the factor's shape; both 0 for factors below ``2^-32``.

    Raises:
      ValueError: a factor is negative, not finite, or ``2^30`` or more.

    Example:
      >>> m, shift = quantize_multiplier(0.375)
      >>> int(m), int(shift), float(m) * 2.0 ** (int(shift) - 31)
      (1610612736, -1, 0.375)
    """
    factor = np.asarray(factor, np.float64)
    if not np.all(np.isfinite(factor)) or np.any(factor < 0) or np.any(factor >= 2**30):
        raise ValueError(f"rescaling factors must be from 0 to below 2^30, got {factor.min()} to {factor.max()}")
    fraction, shift = np.frexp(factor)
    m = np.floor(fraction * 2**31 + 0.5).astype(np.int64)
    full = m == 2**31
    m, shift = np.where(full, m // 2, m), np.where(full, shift + 1, shift)
    small = shift < -31
    return np.where(small, 0, m).astype(np.int32), np.where(small, 0, shift).astype(np.int32)


def _spread(values: np.ndarray, ndim: int) -> np.ndarray:
    """Scalars or one value a channel as an array that multiplies ``[..., channels]``."""
    return np.asarray(values, np.int32).reshape((1,) * (ndim - 1) + (-1,))


def _halves(x: jax.Array, m: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """``(hi, t)`` with ``floor(x m / 2^16) = 2^16 hi + t``, ``0 <= t < 3 2^16``."""
    x_high, x_low = x >> 16, x & 0xFFFF
    m_high, m_low = m >> 16, m & 0xFFFF
    # The product of the low halves fills 32 bits: it wraps, and its bits are read as unsigned.
    low = x_low * m_low
    low = lax.shift_right_logical(low, jnp.full_like(low, 16))
    mid, cross = x_high * m_low, x_low * m_high
    return x_high * m_high + (mid >> 16) + (cross >> 16), low + (mid & 0xFFFF) + (cross & 0xFFFF)


def rescale_twice(x: jax.Array, factors: Factors, *, up: bool = False) -> jax.Array:
    """TFLite's ``MultiplyByQuantizedMultiplier``: halves up to 31 bits, then halves away from 0.

    Args:
      x: int32 ``[..., channels]``.
      factors: from :func:`quantize_multiplier`, of one entry or one a channel.
      up: takes halves up in the second step too, as ruy does.

    Returns:
      int32 of the shape of ``x``. A shift above 0 is applied to ``x`` first and wraps, as it does there.
    """
    m, shift = (_spread(f, x.ndim) for f in factors)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    hi, t = _halves(x << left if left.any() else x, m)
    high = 2 * hi + (((t >> 14) + 1) >> 1)
    if not right.any():
        return high
    mask = ((1 << right.astype(np.int64)) - 1).astype(np.int32)
    threshold = mask >> 1 if up else (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold).astype(jnp.int32)


def rescale_once(x: jax.Array, factors: Factors) -> jax.Array:
    """The exact product rounded once, halves up.

    ``floor(x m 2^(shift - 31) + 1/2)``.

    Args:
      x: int32 ``[..., channels]``.
      factors: from :func:`quantize_multiplier`, of one entry or one a channel; shifts up to 14.

    Returns:
      int32 of the shape of ``x``.

    Raises:
      ValueError: a shift is above 14.
    """
    m, shift = (_spread(f, x.ndim) for f in factors)
    if shift.max() > 14:
        raise ValueError(f"rescaling factors must be below 2^14, got a shift of {shift.max()}")
    total = 31 - shift
    hi, t = _halves(x, m)
    # (floor(x m / 2^32)), and the 16 bits below it, which only factors of 1/2 and more look at.
    high, low = hi + (t >> 16), t & 0xFFFF
    far = (high + np.where(total > 32, 1 << np.maximum(total - 33, 0), 0)) >> np.maximum(total - 32, 0)
    if (total > 32).all():
        return far
    near = (high << np.maximum(32 - total, 0)) + (((low >> np.clip(total - 17, 0, 31)) + 1) >> 1)
    return jnp.where(total > 32, far, near)


def round_away(x: float) -> int:
    """The nearest integer, halves away from 0, as C's ``round``."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def activation_range(activation: str, scale: float, zero_point: int) -> tuple[int, int]:
    """Range of int8 codes that a fused activation and the type leave.

    Args:
      activation: ``"NONE"``, ``"RELU"``, ``"RELU6"`` or ``"RELU_N1_TO_1"``.
      scale: of the output.
      zero_point: of the output as int8.

    Raises:
      ValueError: the activation is another one.

    Example:
      >>> activation_range("RELU6", 0.05, -100)
      (-100, 20)
    """
    limits = {"NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
    if activation not in limits:
        raise ValueError(f"the fused activation must be one of {', '.join(limits)}, got {activation}")

    def code(value: float) -> int:
        return zero_point + round_away(float(np.float32(value) / np.float32(scale)))

    low, high = limits[activation]
    return (-128 if low is None else max(-128, code(low))), (127 if high is None else min(127, code(high)))
