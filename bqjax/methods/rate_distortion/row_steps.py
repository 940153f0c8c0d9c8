"""Rows with steps of their own, in powers of two: noise is shared out by what each output matters (reverse water-filling).

At high rates a step ``s`` costs ``g s^2 / 24`` a weight of a row of importance ``g`` and saves ``log2 s`` bits, so that the best
step goes with ``1 / sqrt(g)``. One step for rows of unequal importance costs ``log2(mean g / geometric mean g) / 2`` bits a weight
more at the same loss. In units of its own, ``w 2^-e`` at an importance of ``g 4^e``, each row is within a factor of two of all
others: the leaf is solved as before, on one grid, and the exponents are stored beside it (:class:`bqjax.core.leaves.Scaled`).

References:
  Berger, "Rate distortion theory", Prentice-Hall 1971: reverse water-filling.
  Gish, Pierce 1968: even steps at high rates.
"""

from __future__ import annotations

import numpy as np

from bqjax.sensitivity.leaf_curvature import Layout

__all__ = ["step_exponents", "to_units"]

_SPACINGS = (1, 2)  # of exponents: short rows pay for fewer different ones
_RECORD_BITS = 200.0
_SHARE = 0.5  # of what is won at high rates: weights that become zero win nothing by a smaller step
_FURTHEST = 24


def step_exponents(layout: Layout, importance: np.ndarray) -> np.ndarray | None:
    """The power of two that each row's step is multiplied by, or None where one step for all takes fewer bits.

    Args:
      layout: of the leaf.
      importance: ``[G, rows]`` of its outputs, positive.

    Returns:
      Integers that the leaf's shape broadcasts with: 1 along the axes of the inputs.

    Example:
      >>> matrix = Layout(shape=(4, 500), view=(4, 500), groups=(), rows=(0,), inputs=(1,))
      >>> step_exponents(matrix, np.array([[1.0, 1.1, 16.0, 15.0]])).tolist()
      [[1], [1], [-1], [-1]]
      >>> step_exponents(matrix, np.array([[1.0, 1.1, 1.2, 1.3]])) is None
      True
    """
    if layout.view != layout.shape or not layout.inputs or not np.prod(layout.shape):
        return None
    # Blocks of wide inputs belong to one row.
    whole = layout.to_leaf(np.broadcast_to(np.asarray(importance, np.float32)[..., None], layout.rows_shape))
    g = whole.mean(layout.inputs, dtype=np.float64, keepdims=True)
    wanted = -0.5 * np.log2(g / np.exp(np.log(g).mean()))
    one = np.zeros(g.shape, np.int64)
    tried = [one, *(np.clip(spacing * np.rint(wanted / spacing), -_FURTHEST, _FURTHEST).astype(np.int64) for spacing in _SPACINGS)]
    best = min(tried, key=lambda exponents: _bits(g, exponents, whole.size))
    return best if best.any() else None


def _bits(g: np.ndarray, exponents: np.ndarray, size: int) -> float:
    """What is lost to uneven importance, and the exponents themselves."""
    left = g * np.exp2(2.0 * exponents)
    lost = _SHARE * size * np.log2(left.mean() / np.exp(np.log(left).mean())) / 2
    counts = np.unique(exponents, return_counts=True)[1]
    if len(counts) == 1:
        return float(lost)
    return float(lost - (counts * np.log2(counts / counts.sum())).sum() + _RECORD_BITS)


def to_units(values: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Weights in their rows' units, ``values * 2^-exponents`` in float32, exact where that does not end.

    Example:
      >>> to_units(np.float32([[3.0], [5.0]]), np.array([[1], [-1]])).tolist()
      [[1.5], [10.0]]
    """
    return np.ldexp(np.asarray(values, np.float32), -exponents.astype(np.int32))
