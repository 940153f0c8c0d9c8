"""Integer codes of a layer onto few values, spread evenly, as coarse as the cost of their storage makes worthwhile.

The codes of an already quantized layer lie on a fine grid. Its bins here are those of a coarser grid: of step
``sqrt(12 lmbda / (h ln 2))`` where quantizing noise and storage are in balance for a weight of curvature ``h`` (at high
rates a step ``s`` costs ``h s^2 / 24`` and saves ``log2 s`` bits). Within that grid the values are then chosen by
:func:`bqjax.methods.rate_distortion.feedback.compensated_values` at the cost that each one's index really has.
Outputs that matter more than others of their layer can have a finer grid (:func:`row_classes`), where what that saves is
more than the tables cost (:func:`quantize_layer_by_output`).

References:
  Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-B: bins on the integer codes of a quantized model.
  Gish, Pierce, "Asymptotically efficient quantizing", IEEE Transactions on Information Theory 14(5), 1968: even steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.methods.rate_distortion.feedback import compensated_values

__all__ = [
    "LayerStats",
    "QuantizedLayer",
    "entropy_bits",
    "even_values",
    "quantize_layer",
    "quantize_layer_by_output",
    "row_classes",
    "weight_curvature",
]

_TABLE_BITS, _VALUE_BITS = 400.0, 16.0  # of a class in the file: its record, and each value with its frequency
_MANY_BITS = 24.0  # for a value that nothing has taken yet: dear, not forbidden


class LayerStats(NamedTuple):
    """What is known of a layer beside its weights. ``G`` is 1, or the number of channels of a depthwise layer.

    Attributes:
      order, factor: ``[G, d]`` and ``[G, d, d]``, see :func:`bqjax.methods.rate_distortion.feedback.inverse_factor`.
      importance: ``[G, rows]`` of the outputs, non-negative.
    """

    order: jax.Array
    factor: jax.Array
    importance: jax.Array


class QuantizedLayer(NamedTuple):
    """A layer's new codes.

    Attributes:
      codes: ``[G, rows, d]`` int64.
      classes: ``[G, rows]``, rows of one class share a grid.
      distortion: ``importance / 2 * e^T H e`` summed over the outputs.
      bits: of the indices, at their entropy within the class.
      steps: of the classes' grids, in steps of the old codes.
    """

    codes: np.ndarray
    classes: np.ndarray
    distortion: float
    bits: float
    steps: tuple[float, ...]


def even_values(step: float, zero_point: int, low: int, high: int) -> np.ndarray:
    """The integers nearest to ``zero_point + i * step`` within ``[low, high]``; each step away at least 1.

    Example:
      >>> even_values(2.5, 0, -6, 6).tolist()
      [-5, -2, 0, 2, 5]
    """
    below, above = math.floor((zero_point - low) / step), math.floor((high - zero_point) / step)
    grid = np.arange(-below, above + 1) * step
    return np.unique(np.clip(zero_point + np.sign(grid) * np.floor(np.abs(grid) + 0.5 - 1e-9), low, high).astype(np.int32))


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """Bits of each value ``[classes, k]`` in a row of counts."""
    with np.errstate(divide="ignore"):
        bits = -np.log2(counts / counts.sum(1, keepdims=True))
    return np.minimum(bits, _MANY_BITS)


def row_classes(stats: LayerStats, min_rows: int = 1, width: float = 1.0) -> np.ndarray:
    """Rows of a layer that share a grid: those whose steps in balance differ by less than a factor of ``2^width``.

    Args:
      stats: of the layer.
      min_rows: a class of fewer rows joins its neighbour: each class has a table of its own in the file.
      width: of a class, in powers of two of the step.

    Returns:
      ``[G, rows]`` class numbers from 0, from the coarsest grid to the finest.
    """
    logs = np.log2(row_curvature(stats)) / 2
    number = np.floor((logs - logs.min()) / width).astype(np.int64)
    bounds, start = [], 0
    counts = np.bincount(number.reshape(-1))
    for i in range(len(counts)):
        # The last class takes what is left, and joins the one before where that is too little.
        if counts[start : i + 1].sum() >= min_rows:
            bounds.append(start)
            start = i + 1
    if not bounds:
        return np.zeros_like(number)
    return np.searchsorted(np.array(bounds), number, side="right") - 1


def weight_curvature(stats: LayerStats) -> np.ndarray:
    """``[G, rows, d]``: what half a squared step costs at each weight, when later ones make good what they can."""
    pivots = np.asarray(jnp.diagonal(stats.factor, axis1=1, axis2=2), np.float64)
    by_place = np.zeros_like(pivots)
    np.put_along_axis(by_place, np.asarray(stats.order), 1 / np.maximum(np.square(pivots), 1e-30), axis=1)
    return np.asarray(stats.importance, np.float64)[:, :, None] * by_place[:, None, :]


def row_curvature(stats: LayerStats) -> np.ndarray:
    """``[G, rows]``: what squared steps cost at a row's weights, their geometric mean.

    The geometric mean: what a weight costs in bits goes with the logarithm of its curvature.
    """
    pivots = np.asarray(jnp.diagonal(stats.factor, axis1=1, axis2=2), np.float64)
    inputs = np.exp(-2 * np.log(np.maximum(pivots, 1e-30)).mean(1))
    return np.maximum(np.asarray(stats.importance, np.float64), 1e-30) * inputs[:, None]


def quantize_layer(
    codes: np.ndarray,
    zero_point: int,
    stats: LayerStats,
    lmbda: float,
    *,
    classes: np.ndarray | None = None,
    compensate: bool = True,
    passes: int = 3,
    step_scale: float = 1.0,
    price: Callable[[np.ndarray], np.ndarray] = entropy_bits,
) -> QuantizedLayer | None:
    """Gives the codes of one layer few values, at a Lagrangian weight of storage.

    Args:
      codes: ``[G, rows, d]`` integers.
      zero_point: the code that stands for 0; it is always among the values.
      stats: of the layer.
      lmbda: of one bit, in the units of ``importance * output^2``.
      classes: ``[G, rows]`` from :func:`row_classes`; rows of a class share a grid and the costs of its indices. None puts
        all rows into one.
      compensate: whether later weights make good the errors of earlier ones.
      passes: over the layer, each at the costs that the last one led to.
      step_scale: factor on the step in balance.
      price: bits of each value's index ``[classes, k]`` by how often the values occur.

    Returns:
      None where the lmbda does not make it worthwhile to give up any code.
    """
    low, high = min(int(codes.min()), zero_point), max(int(codes.max()), zero_point)
    curvature = np.log(row_curvature(stats))
    classes = np.zeros(codes.shape[:2], np.int64) if classes is None else classes
    n_classes = int(classes.max()) + 1
    balance = [
        step_scale * math.sqrt(12 * lmbda / (math.exp(curvature[classes == c].mean()) * math.log(2))) for c in range(n_classes)
    ]
    if max(balance) <= 1.0:
        return None
    steps = np.clip(balance, 1.0, max(1, high - low))
    grids = [even_values(step, zero_point, low, high) for step in steps]
    padded = 1 << max(4, (max(map(len, grids)) - 1).bit_length())  # few sizes, so that layers share compiled code
    table = np.stack([np.append(grid, np.full(padded - len(grid), grid[-1])) for grid in grids]).astype(np.float32)
    counts = np.zeros((n_classes, padded))
    for c, grid in enumerate(grids):
        sample = codes[classes == c].reshape(-1)
        sample = sample[:: max(1, sample.size // 65536)]
        nearest = np.abs(sample[:, None] - grid[None, :]).argmin(1)
        counts[c, : len(grid)] = np.bincount(nearest, minlength=len(grid)) + 0.5
    taken = np.arange(padded)[None, :] < np.array([len(grid) for grid in grids])[:, None]
    w, values = jnp.asarray(codes, jnp.float32), jnp.asarray(table[classes])
    run = jax.vmap(compensated_values, in_axes=(0, 0, 0, 0, 0, 0, None, None))
    for _ in range(passes):
        bits = np.where(taken, price(counts), np.inf).astype(np.float32)
        index, error = run(w, stats.order, stats.factor, stats.importance, values, jnp.asarray(bits[classes]), lmbda, compensate)
        chosen = np.asarray(index)
        counts = np.stack([np.bincount(chosen[classes == c].reshape(-1), minlength=padded) for c in range(n_classes)]).astype(float)
    new = np.take_along_axis(table[classes], chosen, axis=2).astype(np.int64)
    distortion = float((np.asarray(stats.importance, np.float64) * np.asarray(error, np.float64)).sum() / 2)
    return QuantizedLayer(new, classes, distortion, float((counts * price(counts)).sum()), tuple(steps.tolist()))


def quantize_layer_by_output(
    codes: np.ndarray, zero_point: int, stats: LayerStats, lmbda: float, **settings: Any
) -> QuantizedLayer | None:
    """As :func:`quantize_layer`, with one grid for all outputs or one for each class of them, whichever costs less.

    Args:
      codes, zero_point, stats, lmbda: see :func:`quantize_layer`.
      settings: its other arguments, but ``classes``.
    """
    together = quantize_layer(codes, zero_point, stats, lmbda, **settings)
    classes = row_classes(stats, min_rows=max(1, codes.shape[0] * codes.shape[1] // 8))
    apart = quantize_layer(codes, zero_point, stats, lmbda, classes=classes, **settings) if classes.max() else None
    if together is None or apart is None:
        return together
    return min(together, apart, key=lambda layer: layer.distortion + lmbda * (layer.bits + _table_bits(layer)))


def _table_bits(layer: QuantizedLayer) -> float:
    """What a layer costs in the file beside its indices: the classes of the outputs, and a table for each."""
    outputs = np.bincount(layer.classes.reshape(-1))
    values = sum(len(np.unique(layer.codes[layer.classes == c])) for c in range(len(outputs)))
    return float((outputs * entropy_bits(outputs[None])[0]).sum()) + _TABLE_BITS * len(outputs) + _VALUE_BITS * values
