"""A leaf's weights in ascending order, from which any bin's count, mean and extremes are read off in constant time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["SortedWeights"]


class SortedWeights:
    """Concrete weights of one leaf or of a group of leaves.

    A bin is ``lower <= w < upper``. Takes 12 bytes a float32 weight.

    Args:
      values: arrays of one floating-point dtype, together not empty, finite.

    Example:
      >>> weights = SortedWeights([np.array([3.0, -1.0, 1.0, 1.0], np.float32)])
      >>> weights.count(0.0, 2.0), weights.mean(0.0, 2.0), weights.extremes(-np.inf, 2.0)
      (2, 1.0, (-1.0, 1.0))
    """

    def __init__(self, values: Sequence[np.ndarray]):
        self.values = np.sort(np.concatenate([v.reshape(-1) for v in values]))
        # Sums run outwards from the median: what stands between it and a bin is nearer to it than the bin's own weights,
        # so that no bin's mean drowns in the sum of far larger outliers.
        middle = self.values.size // 2
        self._offset = float(self.values[middle])
        distances = np.subtract(self.values, self._offset, dtype=np.float64)
        self._sums = np.zeros(self.values.size + 1)
        np.cumsum(distances[middle:], out=self._sums[middle + 1 :])
        self._sums[:middle] = -np.cumsum(distances[:middle][::-1])[::-1]

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.values.size

    def _range(self, lower: float, upper: float) -> tuple[int, int]:
        a, b = np.searchsorted(self.values, np.array([lower, upper], self.values.dtype), side="left")
        return int(a), int(b)

    def count(self, lower: float, upper: float) -> int:
        """Number of weights in the bin."""
        a, b = self._range(lower, upper)
        return b - a

    def mean(self, lower: float, upper: float) -> float:
        """Mean of the weights in the bin, which must not be empty."""
        a, b = self._range(lower, upper)
        low, high = float(self.values[a]), float(self.values[b - 1])
        if low == high:
            return low
        # Rounding must not carry the mean out of the bin.
        return min(max(self._offset + float(self._sums[b] - self._sums[a]) / (b - a), low), high)

    def extremes(self, lower: float, upper: float) -> tuple[float, float]:
        """Smallest and largest weight in the bin, which must not be empty."""
        a, b = self._range(lower, upper)
        return float(self.values[a]), float(self.values[b - 1])

    def counts(self, edges: np.ndarray) -> np.ndarray:
        """Weights in each bin that ``edges`` bound, int64 ``[len(edges) + 1]``."""
        inner = np.searchsorted(self.values, edges.astype(self.values.dtype), side="left")
        return np.diff(np.concatenate([[0], inner, [self.size]]))

    def entropy(self, edges: np.ndarray) -> float:
        """Entropy of the bin index of a weight, in bits."""
        p = self.counts(edges) / self.size
        p = p[p > 0]
        return float(-(p * np.log2(p)).sum()) + 0.0

    def split(self, lower: float, upper: float) -> float | None:
        """An edge that splits the bin in the middle into two that both hold weights; None where all its weights are equal.

        An inner bin is split between its edges, an outer one between its inner edge and its extreme weight (III-A of the
        paper). Where one half would be empty, the middle of the bin's own extremes is taken instead.
        """
        if self.count(lower, upper) < 2:
            return None
        low, high = self.extremes(lower, upper)
        if low == high:
            return None
        a = lower if np.isfinite(lower) else low
        b = upper if np.isfinite(upper) else high
        # Halved before they are added: the sum of two large weights may overflow.
        dtype = self.values.dtype.type
        edge = float(dtype(0.5 * a + 0.5 * b))
        if not low < edge <= high:
            edge = float(dtype(0.5 * low + 0.5 * high))
        # Halfway between neighbouring floats may round onto the lower one, which would leave its half empty.
        return edge if edge > low else high
