"""Rounding to ``2^bits`` levels in [0, 1], with four ways for gradients to pass it.

The value is the same for all, ``x_q = round(x (2^b - 1)) / (2^b - 1)``; the derivative of rounding is zero almost
everywhere, and each method puts something else in its place:

- straight through: ``g_x = g_q``;
- EWGS: ``g_x = g_q (1 + delta sign(g_q) (x - x_q))``, larger where the update moves ``x`` away from its level;
- DSQ: the derivative of a staircase of tanh;
- IR-Net: the derivative of a tanh around the one threshold, which grows steeper in the course of training.

References:
  Lee, Kim, Ham. Network Quantization with Element-wise Gradient Scaling. CVPR 2021, equations 3 and 7.
  https://arxiv.org/abs/2104.00903
  Gong et al. Differentiable Soft Quantization. ICCV 2019, equations 3 to 9. https://arxiv.org/abs/1908.05033
  Qin et al. Forward and Backward Information Retention for Accurate Binary Neural Networks. CVPR 2020, equations 10
  to 12. https://arxiv.org/abs/1909.10788
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.quantizers.config import QuantizerConfig, check_bits

__all__ = ["dsq_round", "ewgs_round", "irnet_round", "round_unit", "ste_round"]

# IR-Net's slope of the tanh at the start and at the end of training.
_T_MIN, _T_MAX = 0.1, 10.0


def ewgs_round(x: jax.Array, bits: int, delta: jax.Array | float = 1e-3) -> jax.Array:
    """Element-wise gradient scaling (EWGS): rounding whose gradient is scaled by the rounding error.

    ``x_q = round(x (2^b - 1)) / (2^b - 1)``, and backward ``g_x = g_q (1 + delta sign(g_q) (x - x_q))``. With
    ``delta = 0`` it is :func:`ste_round`, bit for bit.

    Args:
      x: ``[...]`` floating point in [0, 1] (clip first; gradients through the clip are the clip's own).
      bits: 1 to 16; one bit rounds to 0 or 1.
      delta: scalar, at least 0; it may be traced, and gets no gradient.

    Returns:
      ``[...]``, of the dtype of ``x``.

    Raises:
      ValueError: ``bits`` or ``delta`` is out of range, or ``x`` is not floating point.

    Example:
      >>> value, back = jax.vjp(lambda x: ewgs_round(x, 1, 0.5), jnp.array([0.25, 0.75]))
      >>> value.tolist(), back(jnp.array([1.0, 1.0]))[0].tolist()
      ([0.0, 1.0], [1.125, 0.875])
    """
    x = _checked(x, bits)
    _check_scalar(delta, "delta", 0.0, np.inf)
    return _ewgs(x, jnp.asarray(delta, x.dtype), bits)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _ewgs(x: jax.Array, delta: jax.Array, bits: int) -> jax.Array:
    return _level(x, bits)


def _ewgs_forward(x: jax.Array, delta: jax.Array, bits: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rounded = _level(x, bits)
    return rounded, (x - rounded, delta)


def _ewgs_backward(bits: int, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    difference, delta = kept
    return g * (1 + delta * jnp.sign(g) * difference), jnp.zeros_like(delta)


_ewgs.defvjp(_ewgs_forward, _ewgs_backward)


def ste_round(x: jax.Array, bits: int) -> jax.Array:
    """Straight-through estimator (STE): rounding whose gradient is passed on unchanged, ``g_x = g_q``.

    Args and errors are those of :func:`ewgs_round`.

    Example:
      >>> jax.grad(lambda x: ste_round(x, 2) * 3.0)(0.4).item()
      3.0
    """
    return _value_and_slope(_level(_checked(x, bits), bits), x)


def dsq_round(x: jax.Array, bits: int, alpha: jax.Array | float = 0.2) -> jax.Array:
    """Differentiable soft quantization (DSQ): backward, the derivative of a tanh in each step of the staircase.

    In step ``i`` of width ``D = 1 / (2^b - 1)`` and middle ``m_i``, the soft value is
    ``D (i + (s tanh(k (x - m_i)) + 1) / 2)`` with ``k = log(2 / alpha - 1) / D`` and ``s = 1 / (1 - alpha)``, so
    that the steps join. The returned value is the rounded one.

    Args:
      x: ``[...]`` floating point in [0, 1].
      bits: 1 to 16.
      alpha: scalar above 0 and below 1, smaller is closer to the staircase; differentiable, so that it can be learned.

    Returns:
      ``[...]``, of the dtype of ``x``.

    Raises:
      ValueError: ``bits`` or ``alpha`` is out of range, or ``x`` is not floating point.

    Example:
      >>> (3 * dsq_round(jnp.array([0.1, 0.2, 0.6]), 2)).round(4).tolist()
      [0.0, 1.0, 2.0]
    """
    x = _checked(x, bits)
    _check_scalar(alpha, "alpha", 0.0, 1.0, open_ends=True)
    alpha = jnp.asarray(alpha, x.dtype)
    steps = 2**bits - 1
    i = jax.lax.stop_gradient(jnp.clip(jnp.floor(x * steps), 0, steps - 1))
    k = jnp.log(2 / alpha - 1)  # times D, because the argument is in steps
    soft = (i + (jnp.tanh(k * (x * steps - i - 0.5)) / (1 - alpha) + 1) / 2) / steps
    return _value_and_slope(_level(x, bits), soft)


def irnet_round(x: jax.Array, bits: int = 1, progress: jax.Array | float = 0.0) -> jax.Array:
    """Error decay estimator (IR-Net) for one bit, on the axis ``2 x - 1`` where the threshold is 0.

    Backward ``g_x = g_q k t (1 - tanh(t (2 x - 1))^2)`` with ``t = 0.1 * 100^progress`` and ``k = max(1 / t, 1)``: the
    identity at the start of training, a steep tanh at its end.

    Args:
      x: ``[...]`` floating point; not restricted to [0, 1], because IR-Net does not clip.
      bits: 1.
      progress: scalar from 0 to 1, the share of training that is done; it may be traced.

    Returns:
      ``[...]`` of 0 and 1, of the dtype of ``x``.

    Raises:
      ValueError: ``bits`` is not 1, ``progress`` is out of range, or ``x`` is not floating point.

    Example:
      >>> round(float(jax.grad(lambda x: irnet_round(x, 1, 1.0))(0.5)), 4)
      10.0
    """
    x = _checked(x, bits)
    if bits != 1:
        raise ValueError(f"IR-Net rounds to one bit, got bits={bits}; use ewgs_round or dsq_round")
    _check_scalar(progress, "progress", 0.0, 1.0)
    t = _T_MIN * (_T_MAX / _T_MIN) ** jax.lax.stop_gradient(jnp.asarray(progress, x.dtype))
    k = jnp.maximum(1 / t, 1)
    soft = k * jnp.tanh(t * (2 * x - 1)) / 2
    return _value_and_slope((x >= 0.5).astype(x.dtype), soft)


def round_unit(
    x: jax.Array,
    bits: int,
    config: QuantizerConfig,
    *,
    delta: jax.Array | float | None = None,
    progress: jax.Array | float = 0.0,
) -> jax.Array:
    """Rounds ``x`` by the method that ``config.rounding`` names.

    Args:
      x: ``[...]`` floating point in [0, 1].
      bits: 1 to 16.
      config: names the method and its settings.
      delta: gradient scale of EWGS in place of ``config.delta``.
      progress: share of training that is done, for IR-Net.

    Returns:
      ``[...]``, of the dtype of ``x``. IR-Net is for one bit; more go straight through.

    Raises:
      ValueError: as the method's function.
    """
    if config.rounding == "ewgs":
        return ewgs_round(x, bits, config.delta if delta is None else delta)
    if config.rounding == "dsq":
        return dsq_round(x, bits, config.dsq_alpha)
    if config.rounding == "irnet" and bits == 1:
        return irnet_round(x, bits, progress)
    return ste_round(x, bits)


@jax.custom_jvp
def _value_and_slope(value: jax.Array, smooth: jax.Array) -> jax.Array:
    """``value``, with the derivatives of ``smooth``; adding ``value - smooth`` to it would not give ``value`` to the bit."""
    return value


@_value_and_slope.defjvp
def _slope_of_smooth(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Through itself, so that second derivatives are those of ``smooth`` too.
    return _value_and_slope(*primals), tangents[1]


def _level(x: jax.Array, bits: int) -> jax.Array:
    steps = 2**bits - 1
    return jnp.round(x * steps) / steps


def _checked(x: Any, bits: int) -> jax.Array:
    check_bits(bits)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    return x


def _check_scalar(value: Any, name: str, low: float, high: float, *, open_ends: bool = False) -> None:
    """Refuses a number out of range; tracers pass unchecked, as only their shape is known."""
    if np.shape(value):
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}")
    if isinstance(value, jax.core.Tracer):
        return
    number = float(value)
    inside = low < number < high if open_ends else low <= number <= high and np.isfinite(number)
    if not inside:
        raise ValueError(
            f"{name} must be {'between' if open_ends else 'from'} {low:g} {'and' if open_ends else 'to'} {high:g}, got {number}"
        )
