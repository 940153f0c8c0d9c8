"""Integer codes of a layer onto few values, spread evenly, as coarse as the cost of their storage makes worthwhile.

The codes of an already quantized layer lie on a fine grid. Its bins here are those of a coarser grid, whose levels are integers
again (:func:`bqjax.methods.rate_distortion.levels.integer_grid`): of the step at which quantizing noise and storage are in balance.
Within that grid the solver of float leaves chooses the values (:func:`bqjax.methods.rate_distortion.leaf.quantize_on`).
Outputs that matter more than others of their layer can have a finer grid (:func:`row_classes`), where what that saves is
more than the tables cost (:func:`quantize_layer_by_output`).

References:
  Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-B: bins on the integer codes of a quantized model.
  Gish, Pierce, "Asymptotically efficient quantizing", IEEE Transactions on Information Theory 14(5), 1968: even steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bqjax.methods.rate_distortion.leaf import LeafStats, Price, mean_curvature, quantize_on
from bqjax.methods.rate_distortion.levels import balanced_step, integer_grid, level_bits

__all__ = [
    "QuantizedLayer",
    "quantize_layer",
    "quantize_layer_by_output",
    "quantize_layer_on",
    "row_classes",
    "row_curvature",
    "weight_curvature",
]

_TABLE_BITS, _VALUE_BITS = 400.0, 16.0  # of a class in the file: its record, and each value with its frequency
_MOST_CLASSES = 8  # of outputs
_MOST_NOISE = 8.0  # bits a weight that noise may cost before the step is halved; in balance it costs 0.7 of one


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


def _entropy(counts: np.ndarray) -> float:
    """Bits of all indices together, at the entropy of how often each occurs."""
    used = counts[counts > 0].astype(np.float64)
    return float(-(used * np.log2(used / used.sum())).sum())


def row_classes(stats: LeafStats, min_rows: int = 1, width: float = 0.5) -> np.ndarray:
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


def row_curvature(stats: LeafStats) -> np.ndarray:
    """``[G, rows]``: what squared steps cost at a row's weights, their geometric mean.

    The geometric mean: what a weight costs in bits goes with the logarithm of its curvature.
    """
    pivots = np.asarray(jnp.diagonal(stats.factor, axis1=1, axis2=2), np.float64)
    inputs = np.exp(-2 * np.log(np.maximum(pivots, 1e-30)).mean(1))
    return np.maximum(np.asarray(stats.importance, np.float64), 1e-30) * inputs[:, None]


def weight_curvature(stats: LeafStats) -> np.ndarray:
    """``[G, rows, d]``: what half a squared step costs at each weight, when later ones make good what they can."""
    pivots = np.asarray(jnp.diagonal(stats.factor, axis1=1, axis2=2), np.float64)
    by_place = np.zeros_like(pivots)
    np.put_along_axis(by_place, np.asarray(stats.order), 1 / np.maximum(np.square(pivots), 1e-30), axis=1)
    return np.asarray(stats.importance, np.float64)[:, :, None] * by_place[:, None, :]


def quantize_layer(
    codes: np.ndarray, zero_point: int, stats: LeafStats, lmbda: float, *, step_scale: float = 1.0, **settings: Any
) -> QuantizedLayer | None:
    """Gives the codes of one layer few values, at a Lagrangian weight of storage.

    The step in balance goes with the geometric mean of the weights' curvatures. Where most of them cost nothing, as those of
    channels that a pruned layer behind does not read, that step is far too coarse for the others, and can leave nothing but 0. A
    layer whose noise costs many times what it should is tried with half of the step, and again, while it does.

    Args:
      codes, zero_point, stats, lmbda, settings: see :func:`quantize_layer_on`.
      step_scale: factor on the step in balance.

    Returns:
      None where the lmbda does not make it worthwhile to give up any code.
    """
    step = step_scale * balanced_step(mean_curvature(stats), lmbda)

    def at(step: float) -> QuantizedLayer:
        found = quantize_layer_on(codes, zero_point, stats, lmbda, step=step, **settings)
        return _unchanged(codes) if found is None else found

    def cost(layer: QuantizedLayer) -> float:
        return layer.distortion + lmbda * layer.bits

    if step <= 1.0:
        return None
    best, allowed = at(step), _MOST_NOISE * lmbda * codes.size
    while best.distortion > allowed and step > 1.0:
        step = min(step, best.steps[0]) / 2
        # Half of a step that leaves nothing but 0 may do so, too.
        best = min(at(step), best, key=cost)
    return best if max(best.steps) > 1.0 else None


def quantize_layer_on(
    codes: np.ndarray,
    zero_point: int,
    stats: LeafStats,
    lmbda: float,
    *,
    step: float,
    compensate: bool = True,
    passes: int = 2,
    sweeps: int = 4,
    price: Price = level_bits,
) -> QuantizedLayer | None:
    """Codes of one layer on the even grid of one step.

    Args:
      codes: ``[G, rows, d]`` integers.
      zero_point: the code that stands for 0; it is always among the values. All values lie within the range of ``codes`` and it.
      stats: of the layer, :func:`bqjax.tflite.codes.layer_stats.layer_stats`.
      lmbda: of one bit, in the units of ``importance * output^2``.
      step: of the grid, in steps of the codes.
      compensate, passes, sweeps, price: see :func:`bqjax.methods.rate_distortion.leaf.quantize_on`.

    Returns:
      None where the step is no coarser than that of the codes.
    """
    if step <= 1.0:
        return None
    low, high = min(int(codes.min()) - zero_point, 0), max(int(codes.max()) - zero_point, 0)
    step = min(step, float(max(1, high - low)))
    grid = integer_grid(low, high, step)
    weights = (codes - zero_point).astype(np.float32)
    found = quantize_on(grid, weights, stats, lmbda, passes=passes, sweeps=sweeps, price=price, compensate=compensate)
    bits = _entropy(np.bincount(found.indices.reshape(-1), minlength=len(grid.levels)))
    new = grid.levels[found.indices].astype(np.int64) + zero_point
    return QuantizedLayer(new, np.zeros(codes.shape[:2], np.int64), found.distortion, bits, (step,))


def quantize_layer_by_output(
    codes: np.ndarray, zero_point: int, stats: LeafStats, lmbda: float, **settings: Any
) -> QuantizedLayer | None:
    """As :func:`quantize_layer`, with one grid for all outputs or one for each class of them, whichever costs less.

    Args:
      codes: ``[1, rows, d]`` integers.
      zero_point, stats, lmbda, settings: see :func:`quantize_layer`. A class for which it is not worthwhile to give up a code keeps
        its codes.
    """
    together = quantize_layer(codes, zero_point, stats, lmbda, **settings)
    classes = row_classes(stats, min_rows=max(1, codes.shape[1] // _MOST_CLASSES))
    if together is None or not classes.max():
        return together
    apart = _by_class(codes, zero_point, stats, lmbda, classes, settings)
    return min(together, apart, key=lambda layer: layer.distortion + lmbda * (layer.bits + _table_bits(layer)))


def _by_class(
    codes: np.ndarray, zero_point: int, stats: LeafStats, lmbda: float, classes: np.ndarray, settings: Mapping[str, Any]
) -> QuantizedLayer:
    """Each class of rows with a grid of its own."""
    new, distortion, bits = np.empty_like(codes), 0.0, 0.0
    steps: list[float] = []
    for c in range(int(classes.max()) + 1):
        rows = np.flatnonzero(classes[0] == c)
        part, own = codes[:, rows], stats._replace(importance=stats.importance[:, rows])
        layer = quantize_layer(part, zero_point, own, lmbda, **settings) or _unchanged(part)
        new[:, rows] = layer.codes
        distortion, bits, steps = distortion + layer.distortion, bits + layer.bits, [*steps, *layer.steps]
    return QuantizedLayer(new, classes, distortion, bits, tuple(steps))


def _unchanged(codes: np.ndarray) -> QuantizedLayer:
    bits = _entropy(np.unique(codes, return_counts=True)[1])
    return QuantizedLayer(codes, np.zeros(codes.shape[:2], np.int64), 0.0, bits, (1.0,))


def _table_bits(layer: QuantizedLayer) -> float:
    """What a layer costs in the file beside its indices: the classes of the outputs, and a table for each."""
    outputs = np.bincount(layer.classes.reshape(-1))
    values = sum(len(np.unique(layer.codes[layer.classes == c])) for c in range(len(outputs)))
    return _entropy(outputs) + _TABLE_BITS * len(outputs) + _VALUE_BITS * values
