"""Levels that a scalar quantizer must keep exactly: zeros of pruned weights, and sentinels.

Squared error does not know that a weight of exactly zero was pruned, or that -65504 means "masked": it moves the one a little and
lets the other swallow the levels of all other weights. So both become levels of their own, and the quantizer is fitted to the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import index_dtype

__all__ = ["fixed_levels", "joined", "loose", "pruned"]

_ZEROS = 0.05  # share of zeros from which they are meant
_FAR = 100.0  # how many times as large as all other weights a sentinel is
_SENTINELS = 8  # at most so many distinct magnitudes
_FEWEST = 64  # weights: among fewer, none is far from the others
_PIECE = 2**18


def _pieces(values: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for v in values:
        flat = v.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            yield flat[start : start + _PIECE]


def fixed_levels(values: Sequence[np.ndarray]) -> np.ndarray:
    """The values of some weights that a quantizer must keep exactly.

    They are zero, where at least 5 % of the weights are zero; and sentinels, at most 8 distinct magnitudes that each are 100 times
    as large as all other weights (of 64 or more), or 99 % of the largest number of the dtype.

    Args:
      values: concrete arrays of one dtype, taken together, finite. Of integers none is fixed.

    Returns:
      ``[m]`` distinct values, ascending, of their dtype; mostly none.

    Example:
      >>> weights = np.linspace(-1, 1, 200, dtype=np.float32)
      >>> weights[:20], weights[70] = 0, -65504
      >>> fixed_levels([weights]).tolist(), fixed_levels([weights[20:70]]).tolist()
      ([-65504.0, 0.0], [])
    """
    dtype, size = values[0].dtype, sum(v.size for v in values)
    if not jnp.issubdtype(dtype, jnp.floating) or not size:
        return np.zeros(0, dtype)
    levels = [*_sentinels(values, size), *([dtype.type(0)] if _zeros(values) >= _ZEROS * size else [])]
    return np.sort(np.array(levels, np.float64)).astype(dtype)


def _zeros(values: Sequence[np.ndarray]) -> int:
    return sum(p.size - int(np.count_nonzero(p)) for p in _pieces(values))


def pruned(weight: Any) -> np.ndarray | None:
    """Which weights of a pruned leaf are not zero: booleans of its shape, or None.

    None where fewer than 5 % of the weights are zero, or all of them, and for integers and tracers.
    """
    if isinstance(weight, jax.core.Tracer) or not jnp.issubdtype(weight.dtype, jnp.floating):
        return None
    host = np.asarray(weight)
    zeros = _zeros([host])
    return host != 0 if zeros < host.size and zeros >= _ZEROS * host.size else None


def _sentinels(values: Sequence[np.ndarray], size: int) -> list[Any]:
    if size < _FEWEST:
        return []
    limit = 0.99 * float(jnp.finfo(values[0].dtype).max)
    found: dict[float, None] = {}  # magnitudes
    below = np.inf
    while len(found) < _SENTINELS:
        largest = _largest(values, below)
        near = set() if not largest else _near(values, largest / _FAR, below, _SENTINELS - len(found))
        if not near:
            break
        rest = _largest(values, min(near))
        if not (rest and rest * _FAR < min(near)):
            if largest < limit:
                break
            near = {largest}
        found |= dict.fromkeys(near)
        below = min(near)
    if not found:
        return []
    least = min(found)
    far = (p[np.abs(p) >= least].astype(np.float64) for p in _pieces(values))
    return sorted({float(v) for p in far for v in np.unique(p)})


def _largest(values: Sequence[np.ndarray], below: float) -> float:
    """The largest magnitude below a bound; 0 where there is none."""
    return max((float(np.max(a, where=a < below, initial=0)) for a in map(np.abs, _pieces(values))), default=0.0)


def _near(values: Sequence[np.ndarray], above: float, below: float, most: int) -> set[float]:
    """The distinct magnitudes between two bounds; none where they are more than ``most``."""
    found: set[float] = set()
    for a in map(np.abs, _pieces(values)):
        distinct = np.unique(a[(a > above) & (a < below)].astype(np.float64))
        found |= set(distinct[: most + 1].tolist())
        if len(found) > most:
            return set()
    return found


def loose(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Booleans of the shape of ``values``: which of them stand at no level."""
    free = np.ones(values.shape, bool)
    for level in levels:
        free &= values != level
    return free


def joined(
    values: np.ndarray, levels: np.ndarray, free: np.ndarray, codebook: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The codebook of all values, from that of the loose ones.

    Args:
      values: ``[n]``.
      levels: ``[m]`` of :func:`fixed_levels`.
      free: ``[n]`` of :func:`loose`.
      codebook: ``[k]`` for the loose values, and their ``indices``.

    Returns:
      Codebook ``[m + k]``, ascending, and indices ``[n]`` of the smallest type.
    """
    whole = np.concatenate([levels, codebook])
    order = np.argsort(whole.astype(np.float64), kind="stable")
    place = np.empty(whole.size, index_dtype(whole.size))
    place[order] = np.arange(whole.size)
    out = np.empty(values.shape, place.dtype)
    out[free] = place[levels.size :][indices]
    for i, level in enumerate(levels):
        out[values == level] = place[i]
    return whole[order], out
