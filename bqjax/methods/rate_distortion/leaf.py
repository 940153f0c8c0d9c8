"""One leaf onto few levels at a Lagrangian weight of storage: grid, error feedback and coordinate descent, at what indices cost.

References: see :mod:`bqjax.methods.rate_distortion.feedback`; damping by ``d / rows`` is the shrinkage of Ledoit, Wolf 2004, "A
well-conditioned estimator for large-dimensional covariance matrices", in its order of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.methods.rate_distortion.feedback import compensated_values, descended_values, inverse_factor, ordered
from bqjax.methods.rate_distortion.levels import Grid, balanced_step, even_grid, level_bits
from bqjax.sensitivity.leaf_curvature import Layout, LeafCurvature

__all__ = [
    "LeafStats",
    "Price",
    "QuantizedRows",
    "diagonal_stats",
    "in_units",
    "leaf_stats",
    "mean_curvature",
    "quantize_on",
    "quantize_rows",
    "unbiased",
]

Price = Callable[[np.ndarray, int], np.ndarray]
"""Bits ``[k]`` of each level's index, from how often levels were taken and which is zero."""

_NEAR, _BLOCK = 2, 128
_ENTRIES = 2**22  # of the moments that are worked on at one time
_FURTHEST = 1.25  # factor on levels; beyond, the errors that are scaled along cost more than what is won behind the leaf
_TABLE_BITS, _VALUE_BITS = 200.0, 20.0  # of a leaf in the file: its record, and each level with its frequency


class LeafStats(NamedTuple):
    """What the solver needs of a leaf's curvature.

    Attributes:
      order: ``[G, d]`` inputs in the order in which they are gone through.
      factor, moment: ``[G, d, d]`` in that order: of the damped inverse, and the damped second moment.
      importance: ``[G, rows]`` of the outputs, positive.
      real: ``[G, d]`` False for inputs that only fill up a block.
      uneven: whether the importance of rows differs by orders of magnitude, see :func:`mean_curvature`.
    """

    order: jax.Array
    factor: jax.Array
    moment: jax.Array
    importance: jax.Array
    real: np.ndarray
    uneven: bool = False


class QuantizedRows(NamedTuple):
    """A leaf's levels.

    Attributes:
      indices: ``[G, rows, d]`` int32 into ``levels``.
      levels: ``[k]`` float32, an even grid.
      zero: index of the level zero.
      distortion: ``importance / 2 * e^T moment e``, summed.
      bits: of the indices at their entropy, and of the table.
    """

    indices: np.ndarray
    levels: np.ndarray
    zero: int
    distortion: float
    bits: float


def leaf_stats(curvature: LeafCurvature, *, centred: bool = False, damping: float = 0.01) -> LeafStats:
    """Statistics of a leaf from its curvature.

    Args:
      curvature: of the leaf.
      centred: errors along the inputs' mean count nothing, since something behind the leaf takes them up.
      damping: share of the mean diagonal of the inputs' moment that is added to its diagonal, beside ``d / rows``: a matrix from
        few rows knows directions along which nothing seems to happen, and errors must not be hidden there.
    """
    inputs, mean = jnp.asarray(curvature.inputs, jnp.float32), jnp.asarray(curvature.mean, jnp.float32)
    moment = inputs - mean[:, :, None] * mean[:, None, :] if centred else inputs
    share = jnp.float32(damping + mean.shape[1] / max(1, curvature.rows))
    order, factor, damped = _factors(moment, share)
    outputs = np.asarray(curvature.outputs, np.float64)
    # What calibration never reached is not known to be worthless.
    outputs = outputs + 0.01 * outputs.mean() + 1e-30
    real = curvature.layout.real_inputs()
    return LeafStats(order, factor, damped, jnp.asarray(outputs, jnp.float32), real, curvature.looked_up)


def diagonal_stats(importance: np.ndarray, *, floor: float = 0.02) -> LeafStats:
    """Statistics of a leaf of which only the importance of its weights is known: each is a row of one input.

    Args:
      importance: of the leaf's shape, non-negative.
      floor: share of the mean importance that every weight has at least.
    """
    h = np.asarray(importance, np.float64).reshape(1, -1)
    h = h + floor * h.mean() + 1e-30
    one = jnp.ones((1, 1, 1), jnp.float32)
    return LeafStats(jnp.zeros((1, 1), jnp.int32), one, one, jnp.asarray(h, jnp.float32), np.ones((1, 1), bool))


def in_units(stats: LeafStats, layout: Layout, exponents: np.ndarray) -> LeafStats:
    """Statistics of the leaf whose rows are in units of ``2^exponents``, which broadcast with the leaf: then they matter alike."""
    rows = layout.to_rows(np.broadcast_to(np.exp2(2 * exponents).astype(np.float32), layout.shape))[..., 0]
    return stats._replace(importance=stats.importance * jnp.asarray(rows), uneven=False)


def _at_once(moment: jax.Array) -> int:
    """Problems that are solved side by side: many small ones (depthwise filters) together, large ones one by one."""
    groups, d = moment.shape[:2]
    return max(1, min(groups, _ENTRIES // d**2))


@jax.jit
def _factors(moment: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    def one(h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        order, factor = inverse_factor(h, share)
        return order, factor, ordered(h, share)[1]

    return jax.lax.map(one, moment, batch_size=_at_once(moment))


def mean_curvature(stats: LeafStats) -> float:
    """What a squared step costs at the leaf's weights, their geometric mean: bits go with the logarithm of it.

    Of rows of uneven importance it is the arithmetic mean: they share one grid, and its noise is paid for by the rows that matter.
    """
    pivots = np.asarray(jnp.diagonal(stats.factor, axis1=1, axis2=2), np.float64)
    real = np.take_along_axis(stats.real, np.asarray(stats.order), axis=1)
    inputs = -2 * np.log(np.maximum(pivots[real], 1e-30)).mean()
    importance = np.asarray(stats.importance, np.float64)
    return float(np.exp(inputs) * (importance.mean() if stats.uneven else np.exp(np.log(importance).mean())))


@partial(jax.jit, static_argnames=("sweeps", "compensate", "hold_zeros"))
def _choose(
    w: jax.Array,
    stats: tuple[jax.Array, ...],
    levels: jax.Array,
    bits: jax.Array,
    lmbda: jax.Array,
    zero: jax.Array,
    sweeps: int,
    compensate: bool,
    hold_zeros: bool,
) -> tuple[jax.Array, jax.Array]:
    """Indices ``[G, rows, d]`` and errors ``[G, rows]``."""

    def one(at: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        w, order, factor, moment, importance = at
        ways: dict[str, Any] = {"near": _NEAR, "zero": zero, "held": w == 0 if hold_zeros else None}
        index, error = compensated_values(w, order, factor, importance, levels, bits, lmbda, compensate, block=_BLOCK, **ways)
        if sweeps and compensate:
            index, error = descended_values(w, index, order, moment, importance, levels, bits, lmbda, sweeps=sweeps, **ways)
        return index, error

    return jax.lax.map(one, (w, *stats), batch_size=_at_once(stats[2]))


def quantize_rows(
    weights: np.ndarray,
    stats: LeafStats,
    lmbda: float,
    *,
    step_scales: Sequence[float] = (1.6,),
    passes: int = 2,
    sweeps: int = 4,
    hold_zeros: bool = False,
) -> QuantizedRows:
    """Levels for the weights of one leaf, of the grids tried the one with the least distortion plus storage.

    Args:
      weights: ``[G, rows, d]`` finite.
      stats: of the leaf.
      lmbda: of a bit, in the units of ``importance * output^2``; not negative.
      step_scales: factors on the step in balance that are tried. At one to five bits a weight 1.6 at a lower lmbda is as good as
        1.2, or better by up to a twentieth of the bytes at equal loss, once rows have steps of their own.
      passes: over the leaf, each at the costs that the last one led to.
      sweeps: of coordinate descent after each.
      hold_zeros: weights of exactly zero, as pruned ones are, stay zero.
    """
    step, largest = balanced_step(mean_curvature(stats), lmbda), float(np.abs(weights).max())
    grids = [even_grid(largest, step * scale) for scale in step_scales]
    found = [quantize_on(grid, weights, stats, lmbda, passes=passes, sweeps=sweeps, hold_zeros=hold_zeros) for grid in grids]
    return min(found, key=lambda q: q.distortion + lmbda * q.bits)


def quantize_on(
    grid: Grid,
    weights: np.ndarray,
    stats: LeafStats,
    lmbda: float,
    *,
    passes: int = 2,
    sweeps: int = 4,
    hold_zeros: bool = False,
    price: Price = level_bits,
    compensate: bool = True,
) -> QuantizedRows:
    """Levels of one grid for the weights of one leaf.

    Args:
      grid: what weights may become.
      weights, stats, lmbda, passes, sweeps, hold_zeros: see :func:`quantize_rows`.
      price: of indices.
      compensate: False chooses each weight for itself, at the same costs.
    """
    real = np.broadcast_to(stats.real[:, None, :], weights.shape)
    index = grid.nearest(weights)
    w, levels = jnp.asarray(weights, jnp.float32), jnp.asarray(grid.levels)
    arrays = stats.order, stats.factor, stats.moment, stats.importance
    for _ in range(passes):
        counts = np.bincount(index[real], minlength=len(grid.levels))
        bits = jnp.asarray(grid.only_taken(price(counts, grid.zero)), jnp.float32)
        chosen, error = _choose(w, arrays, levels, bits, jnp.float32(lmbda), jnp.int32(grid.zero), sweeps, compensate, hold_zeros)
        index = np.asarray(chosen)
    counts = np.bincount(index[real], minlength=len(grid.levels))
    distortion = float((np.asarray(stats.importance, np.float64) * np.asarray(error, np.float64)).sum() / 2)
    used = counts[counts > 0].astype(np.float64)
    bits_used = float(-(used * np.log2(used / used.sum())).sum()) + _TABLE_BITS + _VALUE_BITS * len(used)
    return QuantizedRows(index, grid.levels, grid.zero, distortion, bits_used)


@jax.jit
def _form(x: jax.Array, y: jax.Array, stats: tuple[jax.Array, ...]) -> jax.Array:
    """``sum of importance x^T moment y`` over groups and rows of ``x, y [G, rows, d]``."""

    def one(at: tuple[jax.Array, ...]) -> jax.Array:
        x, y, order, moment, importance = at
        return jnp.sum(importance[:, None] * (x[:, order] @ moment) * y[:, order])

    return jax.lax.map(one, (x, y, *stats), batch_size=_at_once(stats[1])).sum()


def unbiased(found: QuantizedRows, weights: np.ndarray, stats: LeafStats) -> QuantizedRows:
    """The same indices at levels that are scaled so that the leaf's outputs keep their size.

    The price of bits draws weights to zero: outputs ``y`` become ``b y`` and errors that are not along them, with
    ``b = sum g w^T A v / sum g w^T A w`` some percent below 1. That is the least error for this leaf alone, but what lies along the
    outputs adds up over the leaves of a network, where the rest adds in squares. Levels divided by ``b`` have none of it.

    Args:
      found: levels of the leaf.
      weights, stats: that they were found for.

    Example:
      >>> stats = diagonal_stats(np.ones(2))
      >>> found = QuantizedRows(np.array([[[1], [2]]]), np.array([-0.9, 0.0, 0.9], np.float32), 1, 0.0, 0.0)
      >>> scaled = unbiased(found, np.array([[[0.01], [1.0]]]), stats)
      >>> np.round(scaled.levels, 3).tolist(), round(scaled.distortion, 5)
      ([-1.0, 0.0, 1.0], 5e-05)
    """
    w, arrays = jnp.asarray(weights, jnp.float32), (stats.order, stats.moment, stats.importance)

    def error(levels: np.ndarray) -> jax.Array:
        return w - jnp.asarray(levels)[found.indices]

    power = float(_form(w, w, arrays))
    size = 1 - float(_form(w, error(found.levels), arrays)) / power if power > 0 else 1.0  # not of w and v: they are nearly equal
    levels = found.levels * np.float32(1 / min(_FURTHEST, max(1 / _FURTHEST, size)))
    left = error(levels)
    return found._replace(levels=levels, distortion=float(_form(left, left, arrays)) / 2)
