"""Running statistics of gradients: magnitudes, and second moments (the diagonal of the empirical Fisher matrix).

GWK weighs blocks by gradients (:mod:`bqjax.methods.gwk.cluster`). Those of one batch are noisy; means over many batches cost three
arrays beside each weight. :func:`gradient_recorder` has the form of an optax transformation without needing optax;
:mod:`bqjax.adapters.optax` makes it one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["GradientRecorder", "GradientStats", "gradient_recorder", "init", "update"]


class GradientStats(NamedTuple):
    """Statistics of gradients, each a pytree of the parameters' structure with float32 leaves.

    Leaves that are not floating point have a scalar zero.

    Attributes:
      last: ``|g|`` of the last update.
      mean: running mean of ``|g|``.
      square: running mean of ``g^2``, the diagonal of the empirical Fisher matrix when gradients are those of single examples.
      steps: ``[]`` int32, updates taken in.
      skipped: ``[]`` int32, updates that were left out because an entry was NaN or infinite, as loss scaling makes them.
    """

    last: Any
    mean: Any
    square: Any
    steps: jax.Array
    skipped: jax.Array


def _floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def init(params: Any) -> GradientStats:
    """Statistics before any gradient: zeros. Traceable."""

    def zeros() -> Any:
        return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x) if _floating(x) else (), jnp.float32), params)

    return GradientStats(zeros(), zeros(), zeros(), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def update(stats: GradientStats, grads: Any, decay: float | None = 0.99) -> GradientStats:
    """Statistics with one more gradient. Traceable.

    Running means are ``m <- m + r (x - m)`` with ``r = max(1 / steps, 1 - decay)``: plain means at first, which then forget
    at the rate of ``decay``, so that no start at zero has to be corrected for.

    Args:
      stats: from :func:`init` or the last update.
      grads: gradients of the parameters' structure.
      decay: how slowly means forget, in [0, 1); None never forgets.

    Raises:
      ValueError: ``decay`` is outside [0, 1).

    Example:
      >>> stats = init({"w": jnp.zeros(2)})
      >>> for g in ([1.0, -2.0], [3.0, 0.0]):
      ...     stats = update(stats, {"w": jnp.array(g)})
      >>> stats.mean["w"].tolist(), stats.square["w"].tolist(), stats.last["w"].tolist()
      ([2.0, 1.0], [5.0, 2.0], [3.0, 0.0])
    """
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1) or None, got {decay}")
    finite = jnp.array(True)
    for g in jax.tree.leaves(grads):
        if _floating(g):
            finite &= jnp.isfinite(g).all()
    steps = stats.steps + finite
    rate = 1 / jnp.maximum(steps, 1).astype(jnp.float32)
    if decay is not None:
        rate = jnp.maximum(rate, 1 - decay)

    def follow(mean: jax.Array, g: Any, power: int) -> jax.Array:
        if not _floating(g):
            return mean
        size = jnp.abs(jnp.asarray(g).astype(jnp.float32)) ** power
        return jnp.where(finite, mean + rate * (size - mean), mean)

    def newest(last: jax.Array, g: Any) -> jax.Array:
        return jnp.where(finite, jnp.abs(jnp.asarray(g).astype(jnp.float32)), last) if _floating(g) else last

    return GradientStats(
        jax.tree.map(newest, stats.last, grads),
        jax.tree.map(lambda m, g: follow(m, g, 1), stats.mean, grads),
        jax.tree.map(lambda m, g: follow(m, g, 2), stats.square, grads),
        steps,
        stats.skipped + ~finite,
    )


class GradientRecorder(NamedTuple):
    """A pair of functions in the form of an optax transformation that lets updates pass unchanged."""

    init: Callable[[Any], GradientStats]
    update: Callable[..., tuple[Any, GradientStats]]


def gradient_recorder(decay: float | None = 0.99) -> GradientRecorder:
    """A transformation ``(updates, state, params) -> (updates, state)`` whose state is :class:`GradientStats`.

    Args:
      decay: see :func:`update`.

    Raises:
      ValueError: ``decay`` is outside [0, 1).
    """
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1) or None, got {decay}")

    def record(updates: Any, state: GradientStats, params: Any = None) -> tuple[Any, GradientStats]:
        return updates, update(state, updates, decay)

    return GradientRecorder(init, record)
