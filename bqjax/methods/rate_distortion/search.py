"""The lmbda for a size: the lowest whose file is small enough, by interpolation of the sizes of a few files.

Reference: Berger, "Rate distortion theory", Prentice-Hall 1971, the rate of a Gaussian source.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bqjax.codec import save
from bqjax.core.progress import Progress
from bqjax.core.task import Storage
from bqjax.sensitivity.lagrangian import HIGHEST, LOWEST

__all__ = ["file_bytes", "gaussian_lambda", "lambda_for_bytes"]


def file_bytes(tree: Any, coder: str = "auto", metadata: Mapping[str, str] | None = None, storage: Storage | None = None) -> int:
    """Size of the file that :func:`bqjax.codec.save`, or the storage of a task, writes for a tree, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree.bq.safetensors"
        (save if storage is None else storage.save)(path, tree, coder=coder, metadata=metadata)
        return path.stat().st_size


def gaussian_lambda(costs: np.ndarray, weights: np.ndarray, target: int) -> float:
    """The lmbda at which Gaussian sources have a number of bytes, by reverse water-filling: a first guess.

    A source whose removal costs ``D`` a weight costs ``D 2^(-2b)`` at its rate ``b``, where a bit is worth ``2 ln 2 D 2^(-2b)``. So
    at a lmbda each has ``max(0, log2(2 ln 2 D / lmbda) / 2)`` bits.

    Args:
      costs: ``[n]`` of the removal of a weight.
      weights: ``[n]`` how many there are of each.
      target: bytes of all.

    Example:
      >>> round(gaussian_lambda(np.array([1.0]), np.array([8.0]), 2) / (2 * math.log(2)), 4)  # two bits for each of eight weights
      0.0625
    """
    logs = np.log2(np.maximum(2 * math.log(2) * costs, 1e-300))
    low, high = float(logs.min(initial=0.0)) - 64, float(logs.max(initial=0.0))
    for _ in range(60):
        middle = (low + high) / 2
        bits = float((weights * np.maximum(0.0, logs - middle)).sum()) / 2
        low, high = (middle, high) if bits > 8 * target else (low, middle)
    return 2.0**high


def lambda_for_bytes(
    size: Callable[[float], int],
    target: int,
    unit: float,
    n_weights: int,
    *,
    start: float | None = None,
    steps: int = 12,
    close: float = 0.005,
    progress: Progress | None = None,
) -> float:
    """A lmbda whose file is at most ``target`` bytes, and at least ``1 - close`` of that where steps suffice.

    The second file is made on the slope of Gaussian sources, half a bit a weight for each factor of two. From there on, the
    logarithm of lmbda is interpolated as a parabola of the logarithm of the bytes: three to five files in all.

    Args:
      size: of the file at a lmbda, in bytes; falls on average.
      target: bytes.
      unit: the lmbda at which a bit is worth what the removal of a weight costs.
      n_weights: that the file holds.
      start: the lmbda of the first file; None takes that of one Gaussian source of all weights (:func:`gaussian_lambda`).
      steps: files that are made at most.
      close: share of the target that may stay unused.
      progress: called after each file.

    Raises:
      ValueError: not even the highest lmbda's file is small enough; names its size.
    """
    aim = math.log(target * (1 - close / 2))
    made: dict[float, int] = {}
    low, high = LOWEST, HIGHEST  # of exponents: too large a file, and a small enough one
    if start is None:
        start = gaussian_lambda(np.array([unit]), np.array([float(n_weights)]), target)
    x = math.log2(start / unit)
    for _ in range(steps):
        x = min(HIGHEST, max(LOWEST, x))
        made[x] = size(unit * 2**x)
        if progress:
            progress(len(made), steps, f"lmbda {unit * 2**x:.3g}: {made[x]:,} bytes")
        if (1 - close) * target <= made[x] <= target or (x == LOWEST and made[x] <= target):
            return unit * 2**x
        if x == HIGHEST and made[x] > target:
            raise ValueError(
                f"no lmbda reaches {target:,} bytes: the nearest, {unit * 2**x:.3g}, makes a file of {made[x]:,} bytes; "
                "what is left are tables and leaves that are not compressed"
            )
        low, high = (x, high) if made[x] > target else (low, x)
        x = _next_exponent(made, aim, n_weights, low, high)
    within = [x for x, n in made.items() if n <= target]
    if within:
        return unit * 2 ** min(within)
    raise ValueError(f"no lmbda of {steps} that were tried reaches {target:,} bytes: the smallest file had {min(made.values()):,}")


def _next_exponent(made: Mapping[float, int], aim: float, n_weights: int, low: float, high: float) -> float:
    """Where the logarithm of the bytes should be ``aim``, strictly between ``low`` and ``high`` where both were measured."""
    points = sorted(((math.log(n), x) for x, n in made.items()), key=lambda point: abs(point[0] - aim))[:3]
    y, x = points[0]
    if len(made) == 1:  # half a bit a weight for each factor of two
        found = x + min(4.0, max(-4.0, (y - aim) * 16 * math.exp(y) / max(1, n_weights)))
    elif len({y for y, _ in points}) < len(points):
        found = math.inf
    else:
        # Lagrange's form, of the second degree once there are three points.
        found = 0.0
        for i, (a, value) in enumerate(points):
            found += value * math.prod((aim - b) / (a - b) for j, (b, _) in enumerate(points) if j != i)
    bracketed = low in made and high in made
    if not low < found < high or (bracketed and len(made) % 6 == 5):
        # A bend is passed by halving; an end that was not measured is approached in growing steps.
        step = 2 + max(made) - min(made)
        found = (low + high) / 2 if bracketed else max(low, min(made) - step) if y < aim else min(high, max(made) + step)
    return found
