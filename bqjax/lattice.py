"""Integer codes of a layer onto few values, spread evenly, as coarse as a price for storage makes worthwhile.

The codes of an already quantised layer lie on a fine grid. Its bins here are those of a coarser grid: of step
``sqrt(12 price / (h ln 2))`` where quantising noise and storage are in balance for a weight of curvature ``h`` (at high
rates a step ``s`` costs ``h s^2 / 24`` and saves ``log2 s`` bits). Within that grid the values are then chosen by
:func:`bqjax.compensation.compensated_values` at the cost that each one's index really has; values that are not worth
their table vanish.

References:
  Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-B: bins on the integer codes of a quantised model.
  Gish, Pierce, "Asymptotically efficient quantizing", IEEE Transactions on Information Theory 14(5), 1968: even steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.compensation import compensated_values

__all__ = ["LayerStats", "QuantisedLayer", "even_values", "quantise_layer"]

_MANY_BITS = 24.0  # for a value that nothing has taken yet: dear, not forbidden


class LayerStats(NamedTuple):
    """What is known of a layer beside its weights. ``G`` is 1, or the number of channels of a depthwise layer.

    Attributes:
      order, factor: ``[G, d]`` and ``[G, d, d]``, see :func:`bqjax.compensation.inverse_factor`.
      importance: ``[G, rows]`` of the outputs, non-negative.
      mean: ``[G, d]`` of the inputs, in steps from their zero point.
    """

    order: jax.Array
    factor: jax.Array
    importance: jax.Array
    mean: jax.Array


class QuantisedLayer(NamedTuple):
    """A layer's new codes.

    Attributes:
      codes: ``[G, rows, d]`` int32.
      damage: ``importance / 2 * e^T H e`` summed over the outputs.
      bits: of the indices, at their entropy.
      step: of the grid, in steps of the old codes.
    """

    codes: np.ndarray
    damage: float
    bits: float
    step: float


def even_values(step: float, zero_point: int, low: int, high: int) -> np.ndarray:
    """The integers nearest to ``zero_point + i * step`` within ``[low, high]``; each step away at least 1.

    Example:
      >>> even_values(2.5, 0, -6, 6).tolist()
      [-5, -2, 0, 2, 5]
    """
    below, above = math.floor((zero_point - low) / step), math.floor((high - zero_point) / step)
    grid = np.arange(-below, above + 1) * step
    return np.unique(np.clip(zero_point + np.sign(grid) * np.floor(np.abs(grid) + 0.5 - 1e-9), low, high).astype(np.int32))


def _entropy(counts: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        bits = -np.log2(counts / counts.sum())
    return np.minimum(bits, _MANY_BITS)


def quantise_layer(
    codes: np.ndarray,
    zero_point: int,
    stats: LayerStats,
    price: float,
    *,
    compensate: bool = True,
    passes: int = 3,
    step_scale: float = 1.0,
) -> QuantisedLayer | None:
    """Gives the codes of one layer few values, at a price of storage.

    Args:
      codes: ``[G, rows, d]`` integers.
      zero_point: the code that stands for 0; it is always among the values.
      stats: of the layer.
      price: of one bit, in the units of ``importance * output^2``.
      compensate: whether later weights make good the errors of earlier ones.
      passes: over the layer, each at the costs that the last one led to.
      step_scale: factor on the step in balance.

    Returns:
      None where the price does not make it worthwhile to give up any code.
    """
    low, high = min(int(codes.min()), zero_point), max(int(codes.max()), zero_point)
    pivots = np.asarray(jnp.diagonal(stats.factor, axis1=1, axis2=2), np.float64)
    g = np.asarray(stats.importance, np.float64)
    # The geometric mean: what a weight costs in bits goes with the logarithm of its curvature.
    curvature = math.exp(np.log(np.maximum(g, 1e-30)).mean() - 2 * np.log(np.maximum(pivots, 1e-30)).mean())
    step = step_scale * math.sqrt(12 * price / (curvature * math.log(2))) if price > 0 else 0.0
    if step <= 1.0:
        return None
    values = even_values(min(step, float(max(1, high - low))), zero_point, low, high)
    w = jnp.asarray(codes, jnp.float32)
    nearest = np.abs(codes.reshape(-1, 1)[:: max(1, codes.size // 65536)] - values[None, :]).argmin(1)
    counts = np.bincount(nearest, minlength=len(values)) + 0.5
    padded = 1 << max(4, (len(values) - 1).bit_length())  # few sizes, so that layers share compiled code
    run = jax.vmap(compensated_values, in_axes=(0, 0, 0, 0, None, None, None, None))
    table = np.full(padded, values[-1], np.float32)
    table[: len(values)] = values
    for _ in range(passes):
        bits = np.full(padded, np.inf, np.float32)
        bits[: len(values)] = _entropy(counts)
        index, error = run(w, stats.order, stats.factor, stats.importance, jnp.asarray(table), jnp.asarray(bits), price, compensate)
        chosen = np.asarray(index)
        counts = np.bincount(chosen.reshape(-1), minlength=len(values)).astype(np.float64)
    damage = float((np.asarray(stats.importance, np.float64) * np.asarray(error, np.float64)).sum() / 2)
    used = counts[counts > 0]
    return QuantisedLayer(values[chosen], damage, float(-(used * np.log2(used / used.sum())).sum()), step)
