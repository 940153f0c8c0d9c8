"""Hutchinson estimate of the Hessian's trace: the gradient scale of EWGS, and what it is where that measurement fails.

``delta = max(0, (Tr(H) / N) / (3 std(g)))``: the mean curvature per element over a large gradient. The trace is that of
Hutchinson, ``E[v^T H v]`` with random signs ``v``. The quotient is unstable: where gradients have died out it explodes, and
users of the reference code have met NaN from it. Here it is bounded, and the measurement says which guard took effect.

References:
  Lee, Kim, Ham. Network Quantization with Element-wise Gradient Scaling. CVPR 2021, equations 12 and 13.
  https://arxiv.org/abs/2104.00903
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["REASONS", "HessianInfo", "hessian_delta"]

REASONS = (
    "measured",
    "negative trace: delta is 0",
    "not finite: the fallback is used",
    "no gradients: the fallback is used",
    "too large: cut to max_delta",
)
"""What the numbers of ``HessianInfo.reason`` mean."""


class HessianInfo(NamedTuple):
    """How a scale came about; pytrees of the structure of ``x`` with scalars.

    Attributes:
      trace: Hutchinson's estimate of ``Tr(H)`` for the leaf.
      gradient_std: standard deviation of the leaf's gradient.
      reason: int32 index into :data:`REASONS`; 0 where no guard took effect.
    """

    trace: Any
    gradient_std: Any
    reason: Any


def hessian_delta(
    loss: Callable[[Any], jax.Array],
    x: Any,
    key: jax.Array,
    *,
    samples: int = 8,
    max_delta: float = 1.0,
    fallback: float = 1e-3,
) -> tuple[Any, HessianInfo]:
    """Gradient scale ``delta`` of EWGS for each leaf of ``x`` by Hutchinson's trace: one Hessian-vector product a sample.

    ``x`` should be the rounded values ``x_q`` and ``loss`` a function that does not round them again: through the
    rounding itself curvature is zero.

    Args:
      loss: ``loss(x) -> scalar``, twice differentiable.
      x: a pytree of floating-point arrays; each leaf gets its own scale from its block of the Hessian.
      key: for the random signs.
      samples: number of vectors, at least 1.
      max_delta: upper bound. With ``|x - x_q| <= 1/2``, gradients keep their sign up to ``delta = 2``.
      fallback: the scale where the measurement is not finite or a gradient is zero throughout.

    Returns:
      ``(delta, info)``: a pytree like ``x`` of float32 scalars, and how they came about. Traceable.

    Raises:
      ValueError: ``x`` has no leaves, a leaf is not floating point or empty, or a number is out of range.

    Example:
      >>> delta, info = hessian_delta(lambda x: 0.5 * (x**2).sum(), jnp.array([3.0, -3.0]), jax.random.key(0))
      >>> float(info.trace), round(float(delta), 4), REASONS[int(info.reason)]
      (2.0, 0.1111, 'measured')
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    for name, value in (("max_delta", max_delta), ("fallback", fallback)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
    leaves, treedef = jax.tree.flatten(x)
    if not leaves:
        raise ValueError("x has no arrays to measure the Hessian of")
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
            raise ValueError(f"x must hold non-empty floating-point arrays, got {leaf.dtype} {leaf.shape}")

    def gradient(leaves: list[jax.Array]) -> list[jax.Array]:
        return jax.grad(lambda leaves: loss(jax.tree.unflatten(treedef, leaves)))(leaves)

    def trace(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(leaves))
        signs = [jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        products = jax.jvp(gradient, (leaves,), (signs,))[1]
        return [jnp.sum((v * hv).astype(jnp.float32)) for v, hv in zip(signs, products, strict=True)]

    # One after another: side by side they would hold the activations of all samples.
    traces = [t.mean() for t in jax.lax.map(trace, jax.random.split(key, samples))]
    stds = [jnp.std(g.astype(jnp.float32)) for g in gradient(leaves)]
    found = [_guarded(t, s, leaf.size, max_delta, fallback) for t, s, leaf in zip(traces, stds, leaves, strict=True)]
    deltas, reasons = ([pair[i] for pair in found] for i in (0, 1))
    unflatten = partial(jax.tree.unflatten, treedef)
    return unflatten(deltas), HessianInfo(unflatten(traces), unflatten(stds), unflatten(reasons))


def _guarded(trace: jax.Array, std: jax.Array, n: int, max_delta: float, fallback: float) -> tuple[jax.Array, jax.Array]:
    dead = std <= jnp.finfo(jnp.float32).tiny
    delta = (trace / n) / (3 * jnp.where(dead, 1.0, std))
    wrong = ~(jnp.isfinite(trace) & jnp.isfinite(std) & jnp.isfinite(delta))
    conditions = [wrong, dead, delta < 0, delta > max_delta]
    reason = jnp.select(conditions, [jnp.int32(i) for i in (2, 3, 1, 4)], jnp.int32(0))
    values = [jnp.float32(v) for v in (fallback, fallback, 0.0, max_delta)]
    return jnp.select(conditions, values, delta), reason
