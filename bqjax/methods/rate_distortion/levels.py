"""Reconstruction levels of a leaf: an even grid in balance with lmbda, and what its indices cost.

A grid of step ``s`` costs ``h s^2 / 24`` a weight of curvature ``h`` and saves ``log2 s`` bits (at high rates), so that noise and
storage are in balance at ``s = sqrt(12 lmbda / (h ln 2))``. Zero is always a level.
(Levels refitted by least squares under the curvature lowered the predicted distortion by a hundredth and cost more in the file.)

References:
  Gish, Pierce, "Asymptotically efficient quantizing", IEEE Transactions on Information Theory 14(5), 1968: even steps.
  Krichevsky, Trofimov 1981, "The performance of universal encoding", IEEE Trans. Information Theory 27(2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["MOST_LEVELS", "Grid", "balanced_step", "even_grid", "integer_grid", "level_bits"]

MOST_LEVELS = 2**16  # of a leaf
_PRIOR = 4.0  # occurrences that the fitted distribution counts as, beside the ones seen
_MARGIN = 1.25  # feedback moves weights beyond where they stood


class Grid(NamedTuple):
    """What the weights of a leaf may become.

    Attributes:
      levels: ``[k]`` float32, rising, close to even; ``k`` is a power of two (few sizes, so that leaves share compiled code).
      zero: index of the level zero.
      first, last: indices of the lowest and the highest level that may be taken.
    """

    levels: np.ndarray
    zero: int
    first: int
    last: int

    @property
    def step(self) -> float:
        """Between neighbours, on average."""
        return float(self.levels[-1] - self.levels[0]) / (len(self.levels) - 1)

    def nearest(self, weights: np.ndarray) -> np.ndarray:
        """Indices of about the nearest levels that may be taken (exactly, where the grid is even), int64 of the weights' shape."""
        index = np.rint(np.asarray(weights, np.float64) / self.step).astype(np.int64) + self.zero
        return np.clip(index, self.first, self.last)

    def only_taken(self, bits: np.ndarray) -> np.ndarray:
        """Costs ``[k]`` with infinity for levels that may not be taken."""
        index = np.arange(len(self.levels))
        return np.where((index >= self.first) & (index <= self.last), bits, np.inf)


def balanced_step(curvature: float, lmbda: float) -> float:
    """The step of the even grid in balance.

    Args:
      curvature: of the leaf's weights, their geometric mean.
      lmbda: of a bit.

    Example:
      >>> round(balanced_step(12.0, 1.0), 4)
      1.2011
    """
    return math.sqrt(12 * lmbda / (max(curvature, 1e-300) * math.log(2)))


def even_grid(largest: float, step: float) -> Grid:
    """Levels ``step * i`` that reach beyond ``largest`` on both sides.

    Args:
      largest: absolute value of a weight.
      step: of the grid; made larger where there would be more than :data:`MOST_LEVELS` levels.

    Example:
      >>> grid = even_grid(1.0, 0.5)
      >>> grid.levels.shape, grid.zero, grid.levels[grid.zero - 1 : grid.zero + 2].tolist()
      ((64,), 32, [-0.5, 0.0, 0.5])
    """
    step = max(step, largest * _MARGIN / (MOST_LEVELS // 2 - 4), 1e-30)
    half = 1 << max(5, math.ceil(math.log2(largest * _MARGIN / step + 3)))
    return Grid(((np.arange(2 * half) - half) * step).astype(np.float32), half, 0, 2 * half - 1)


def integer_grid(low: int, high: int, step: float) -> Grid:
    """Integers nearest to ``step * i``, halves towards zero: levels of weights that are integers and stay such.

    Args:
      low, high: of what may be taken; at most and at least 0.
      step: of the grid, at least 1.

    Example:
      >>> grid = integer_grid(-6, 5, 2.5)
      >>> grid.levels[grid.first : grid.last + 1].tolist()
      [-5.0, -2.0, 0.0, 2.0, 5.0]
    """
    half = 1 << max(5, math.ceil(math.log2(max(-low, high) / step + 1)))
    number = np.arange(2 * half) - half
    levels = np.sign(number) * np.floor(np.abs(number) * step + 0.5 - 1e-9)
    inside = np.flatnonzero((levels >= low) & (levels <= high))
    return Grid(levels.astype(np.float32), half, int(inside[0]), int(inside[-1]))


def level_bits(counts: np.ndarray, zero: int) -> np.ndarray:
    """What the index of each level costs: its share, smoothed by a two-sided geometric distribution around zero.

    Rare levels cost what the distribution says of them, so that one that nothing has taken yet is dear, not forbidden.

    Args:
      counts: ``[k]`` how often each level was taken.
      zero: index of the level zero.

    Returns:
      ``[k]`` bits, positive and finite.
    """
    counts = np.asarray(counts, np.float64)
    total, away = counts.sum(), np.abs(np.arange(len(counts)) - zero)
    mean = max((counts * away).sum() / max(total, 1.0), 1e-3)
    log_ratio = math.log2((math.sqrt(1 + mean**2) - 1) / mean)
    log_prior = away * log_ratio
    log_prior -= np.log2(np.exp2(log_prior).sum())
    with np.errstate(divide="ignore"):
        seen = np.log2(counts)
    return math.log2(total + _PRIOR) - np.logaddexp2(seen, math.log2(_PRIOR) + log_prior)
