"""The lmbda for a limit: the highest that keeps the metric's drops on calibration data, or the lowest whose file is small enough.

References: see :mod:`bqjax.sensitivity.limit`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bqjax.codec import save
from bqjax.core.progress import Progress
from bqjax.core.task import Storage
from bqjax.sensitivity.limit import highest_within

__all__ = ["file_bytes", "lambda_for_bytes", "search_lambda"]

# Powers of two of the lmbda at which a bit is worth what the removal of a weight costs.
LOWEST, HIGHEST = -16.0, 2.0


def file_bytes(tree: Any, coder: str = "auto", metadata: Mapping[str, str] | None = None, storage: Storage | None = None) -> int:
    """Size of the file that :func:`bqjax.codec.save`, or the storage of a task, writes for a tree, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree.bq.safetensors"
        (save if storage is None else storage.save)(path, tree, coder=coder, metadata=metadata)
        return path.stat().st_size


def search_lambda(
    excess: Callable[[float], float],
    unit: float,
    *,
    steps: int = 7,
    scan: int = 4,
    progress: Progress | None = None,
) -> float:
    """The highest lmbda within a limit, searched on its logarithm.

    Args:
      excess: measured at a lmbda: how far the drop is above its limit (the worst of several limits); rises on average.
      unit: the lmbda at which a bit is worth what the removal of a weight costs.
      steps, scan: see :func:`bqjax.sensitivity.limit.highest_within`.
      progress: called after each measurement.

    Raises:
      ValueError: no lmbda that was tried keeps the limit.
    """
    tried: dict[float, float] = {}

    def lost(exponent: float) -> float:
        lmbda = unit * 2**exponent
        tried[lmbda] = excess(lmbda)
        if progress:
            progress(len(tried), steps + scan, f"lmbda {lmbda:.3g}: {tried[lmbda]:+.4f} above the limit")
        return tried[lmbda]

    found = highest_within(lost, 0.0, low=LOWEST, high=HIGHEST, steps=steps, scan=scan)
    if found is None:
        lmbda = min(tried, key=lambda x: (tried[x], x))
        raise ValueError(
            f"no lmbda keeps the limit: the nearest, {lmbda:.3g}, is {tried[lmbda]:.4f} above it; "
            "allow more, or calibrate on more data"
        )
    return unit * 2**found


def lambda_for_bytes(
    size: Callable[[float], int],
    target: int,
    unit: float,
    *,
    steps: int = 12,
    close: float = 0.005,
    progress: Progress | None = None,
) -> float:
    """A lmbda whose file is at most ``target`` bytes, and at least ``1 - close`` of that where steps suffice.

    Args:
      size: of the file at a lmbda, in bytes; falls on average.
      target: bytes.
      unit: as in :func:`search_lambda`.
      steps: files that are made at most, after those at both ends.
      close: share of the target that may stay unused.
      progress: called after each file.

    Raises:
      ValueError: not even the highest lmbda's file is small enough; names its size.
    """
    made: dict[float, int] = {}

    def at(exponent: float) -> int:
        if exponent not in made:
            made[exponent] = size(unit * 2**exponent)
            if progress:
                progress(len(made), steps + 2, f"lmbda {unit * 2**exponent:.3g}: {made[exponent]:,} bytes")
        return made[exponent]

    low, high = LOWEST, HIGHEST
    if at(high) > target:
        raise ValueError(
            f"no lmbda reaches {target:,} bytes: the nearest, {unit * 2**high:.3g}, makes a file of {made[high]:,} bytes; "
            "what is left are tables and leaves that are not compressed"
        )
    if at(low) <= target:
        return unit * 2**low
    for step in range(steps):
        if made[high] >= (1 - close) * target:
            break
        # Sizes fall about evenly with the logarithm of lmbda; every third step halves, so that a bend does not hold it up.
        a, b = (math.log(made[x]) for x in (low, high))
        share = 0.5 if step % 3 == 2 else min(0.95, max(0.05, (a - math.log(target * (1 - close / 2))) / max(a - b, 1e-12)))
        middle = low + share * (high - low)
        low, high = (low, middle) if at(middle) <= target else (middle, high)
    return unit * 2**high
