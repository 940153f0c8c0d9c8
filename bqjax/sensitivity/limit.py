"""The largest setting within a limit: bisection, a scan around its end, and an isotonic fit of all that was measured.

For settings such as the exponent of a rate-distortion ``lmbda``, at which losses rise on average but not from each to the next:
codes at a slightly other ``lmbda`` err elsewhere, and of a few hundred examples those near a decision flip or do not. Bisection
alone stops at the first that happens to lie above the limit, and the highest of many that happen to lie below is too lucky. So
bisection finds the neighbourhood, evenly spread settings there are measured, and all measurements are smoothed by the rising curve
next to them.

Reference: Barlow, Bartholomew, Bremner, Brunk, "Statistical inference under order restrictions", Wiley 1972: least squares
under an order, by pooling adjacent violators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["highest_within", "rising_fit"]

_TOLERANCE = 1e-9  # losses are sums of shares


def rising_fit(values: Sequence[float]) -> np.ndarray:
    """Isotonic regression: the non-decreasing sequence next to ``values`` in the sum of squares.

    Example:
      >>> rising_fit([1.0, 4.0, 2.0, 3.0, 5.0]).tolist()
      [1.0, 3.0, 3.0, 3.0, 5.0]
    """
    pools: list[tuple[float, int]] = []  # mean and length
    for value in values:
        mean, n = float(value), 1
        while pools and pools[-1][0] >= mean:
            before, m = pools.pop()
            mean, n = (before * m + mean * n) / (m + n), m + n
        pools.append((mean, n))
    return np.repeat([mean for mean, _ in pools], [n for _, n in pools])


def highest_within(
    lost: Callable[[float], float], limit: float, *, low: float, high: float, steps: int, scan: int, reach: float = 1.0
) -> float | None:
    """The largest number at which no more than ``limit`` is lost, as far as measuring can tell.

    Args:
      lost: measured at a number within ``(low, high]``; rises on average.
      limit: of what may be lost.
      low, high: where the bisection starts; neither is measured by it.
      steps: of the bisection.
      scan: numbers measured after it, evenly spread from what it accepted to ``reach`` above the least that it refused; 0 takes
        what the bisection found.
      reach: how far above.

    Returns:
      A number that was measured, where both what was lost and the rising curve through all measurements keep the limit;
      None where there is none. It is never below what the bisection alone accepts.
    """
    bottom, top = low, high
    found: dict[float, float] = {}

    def measure(x: float) -> bool:
        if x not in found:
            found[x] = lost(x)
        return found[x] <= limit + _TOLERANCE

    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) else (low, middle)
    end = min(top, high + reach)
    for i in range(scan):
        measure(low + (end - low) * (i + 1) / scan)
    order = sorted(x for x in found if x > bottom)
    fit = rising_fit([found[x] for x in order])
    kept = [x for x, smooth in zip(order, fit, strict=True) if max(smooth, found[x]) <= limit + _TOLERANCE]
    return max(kept, default=None)
