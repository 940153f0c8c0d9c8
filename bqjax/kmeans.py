"""k-means on weights: Lloyd's algorithm in one dimension, and the careful means that go with it.

Lloyd's algorithm needs a good start and many passes over the weights. Here nearly all of its work is done on a
histogram of a few ten thousand cells, whose widths follow the data: a cell is a range of the weights' ordered bit
patterns, so it is narrow in relative terms, whatever the scale, and the cells that hold most of the expected error
are split further. The start is the exact optimum of a coarser histogram by dynamic programming, which a poor local
optimum cannot trap. A few passes over all weights then make the result exact.

Memory stays linear in the number of weights: no array of ``n * k`` entries exists at any time.

References:
  Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982.
  Wang and Song, "Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming", R Journal 3(2), 2011.
  Panter and Dite, "Quantization distortion in pulse-count modulation with nonuniform spacing of levels", Proceedings
  of the IRE 39(1), 1951.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.leaves import index_dtype

__all__ = ["ScalarKMeans", "kmeans_scalar", "nearest", "segment_means"]

# Inputs up to this size are clustered as they are; a histogram stands in for larger ones until the last passes.
_DIRECT = 2**15
# First-level cells are the leading 14 bits of a value's ordered bit pattern: 32 cells an octave in float32.
_COARSE_BITS = 14
# Cells handed out by the second level, on top of one for every first-level cell in use.
_FINE_CELLS = 2**16
# Passes over all values after the histogram: one makes the entries exact means, one settles the cells at boundaries.
_EXACT_PASSES = 2
# The dynamic programme sees this many points and is used up to this k: k * points^2 operations.
_PROGRAMME_POINTS = 1024
_PROGRAMME_MAX_K = 256
# Up to these k comparing with every segment's number beats a scatter, and comparing with every midpoint a binary search.
_SUM_BY_COMPARING_MAX_K = 16
_ASSIGN_BY_COMPARING_MAX_K = 64
_CHUNK = 2**14
_LANES = 64
_SCATTER_ROWS = 64


class ScalarKMeans(NamedTuple):
    """Result of :func:`kmeans_scalar`.

    Attributes:
      codebook: ``[k]``, ascending, float32 or float64. With fewer than ``k`` distinct values to be had, the surplus
        entries stand at the end and repeat the largest value; no index points to them.
      indices: ``[n]``, the smallest unsigned type for ``k``: the nearest codebook entry of every value.
      mse: ``[]``, the (weighted) mean of the squared distances of values from their entries.
      iterations: ``[]`` int32, Lloyd iterations done, on the histogram and on all values together.
    """

    codebook: jax.Array
    indices: jax.Array
    mse: jax.Array
    iterations: jax.Array


# --------------------------------------------------------------------------------------------------------------------
# Checks, made before tracing
# --------------------------------------------------------------------------------------------------------------------


def _check_k(k: int) -> int:
    try:
        k = operator.index(k)
    except TypeError:
        raise ValueError(f"k must be an integer, got {k!r}") from None
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def _concrete(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def _check_values(values: Any, what: str = "values") -> jax.Array:
    """The values as a float32 or float64 vector."""
    values = jnp.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{what} must not be empty")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{what} must be floating point, got {values.dtype}")
    if _concrete(values) and not bool(jnp.isfinite(values).all()):
        raise ValueError(f"{what} holds {int((~jnp.isfinite(values)).sum())} NaN or infinite entries of {values.size}")
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def _check_weights(weights: Any, values: jax.Array) -> jax.Array | None:
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.shape != values.shape:
        raise ValueError(f"weights must have the shape of values, {values.shape}, got {weights.shape}")
    if _concrete(weights):
        if not bool(jnp.isfinite(weights).all()):
            raise ValueError(f"weights holds {int((~jnp.isfinite(weights)).sum())} NaN or infinite entries of {weights.size}")
        if bool((weights < 0).any()):
            raise ValueError(f"weights must not be negative, the smallest is {float(weights.min())}")
    return weights.astype(values.dtype)


def _uniform_if_zero(weights: jax.Array) -> jax.Array:
    """Weights scaled to a largest of 1, so that products neither overflow nor vanish; ones where all are zero."""
    largest = weights.max()
    return jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1), 1)


# --------------------------------------------------------------------------------------------------------------------
# Reductions over segments
# --------------------------------------------------------------------------------------------------------------------


def _chunked(x: jax.Array, fill: Any) -> jax.Array:
    """``[n]`` -> ``[chunks, 1, rows, lanes]``, padded."""
    chunk = min(_CHUNK, -(-x.size // _LANES) * _LANES)
    return jnp.pad(x, (0, -x.size % chunk), constant_values=fill).reshape(-1, 1, chunk // _LANES, _LANES)


def _pairwise(x: jax.Array) -> jax.Array:
    """Sum over axis 0 by groups of 32, whose rounding error grows with the logarithm of the length."""
    while x.shape[0] > 32:
        x = jnp.pad(x, ((0, -x.shape[0] % 32), *[(0, 0)] * (x.ndim - 1)))
        x = x.reshape(-1, 32, *x.shape[1:]).sum(1)
    return x.sum(0)


def _total(x: jax.Array) -> jax.Array:
    """Sum of a vector, pairwise over short chunks."""
    return _pairwise(_pairwise(_chunked(x, 0).sum((1, 2))))


class _Sums(NamedTuple):
    mass: jax.Array  # [k] sum of weights
    residual: jax.Array  # [k] sum of weight * (value - offset of its segment)


def _segment_sums(x: jax.Array, segments: jax.Array, weights: jax.Array | None, offset: jax.Array) -> _Sums:
    """Sums about an offset for each segment, so that rounding is relative to the spread and not to the values.

    Segments numbered ``k`` count nowhere.
    """
    k, dtype = offset.shape[0], x.dtype
    segments = segments.astype(index_dtype(k + 1))
    if k > _SUM_BY_COMPARING_MAX_K:
        # Rows bound the number of additions into any one accumulator.
        rows = lax.iota(jnp.int32, x.size) % _SCATTER_ROWS * (k + 1) + segments.astype(jnp.int32)

        def add(term: Any) -> jax.Array:
            table = jnp.zeros(_SCATTER_ROWS * (k + 1), jnp.result_type(term)).at[rows].add(term, mode="promise_in_bounds")
            return _pairwise(table.reshape(_SCATTER_ROWS, k + 1))[:k].astype(dtype)

        r = x - offset[jnp.minimum(segments, np.array(k - 1, segments.dtype))]
        return _Sums(add(np.int32(1)), add(r)) if weights is None else _Sums(add(weights), add(weights * r))

    numbers = lax.iota(segments.dtype, k)[:, None, None]
    centre = offset[:, None, None]

    def sums(chunk: tuple[jax.Array, ...]) -> _Sums:
        hit, r = chunk[1] == numbers, chunk[0] - centre
        if weights is None:
            return _Sums(hit.sum(1, dtype=jnp.int32), jnp.where(hit, r, 0).sum(1))
        return _Sums(jnp.where(hit, chunk[2], 0).sum(1), jnp.where(hit, chunk[2] * r, 0).sum(1))

    operands = (_chunked(x, 0), _chunked(segments, k)) + (() if weights is None else (_chunked(weights, 0),))
    return _Sums(*(_pairwise(_pairwise(total).T).astype(dtype) for total in lax.map(sums, operands)))


def _segment_range(x: jax.Array, segments: jax.Array, weights: jax.Array | None, k: int) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest value of positive weight in each segment: ``inf`` and ``-inf`` where there is none."""
    segments = segments.astype(index_dtype(k + 1))
    if weights is not None:
        segments = jnp.where(weights > 0, segments, np.array(k, segments.dtype))
    if k > _SUM_BY_COMPARING_MAX_K:
        low = jnp.full(k + 1, jnp.inf, x.dtype).at[segments].min(x, mode="promise_in_bounds")
        high = jnp.full(k + 1, -jnp.inf, x.dtype).at[segments].max(x, mode="promise_in_bounds")
        return low[:k], high[:k]
    numbers = lax.iota(segments.dtype, k)[:, None, None]

    def extremes(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hit = chunk[1] == numbers
        return jnp.where(hit, chunk[0], jnp.inf).min(1), jnp.where(hit, chunk[0], -jnp.inf).max(1)

    low, high = lax.map(extremes, (_chunked(x, 0), _chunked(segments, k)))
    return low.min((0, 2)), high.max((0, 2))


def segment_means(values: Any, segments: Any, k: int, weights: Any | None = None, *, fill: float = 0.0) -> jax.Array:
    """Mean of the values in each segment, careful about rounding.

    ``mean_j = c_j + sum_{i in j} w_i (x_i - c_j) / sum_{i in j} w_i``, with ``c_j`` first a member of the segment and then
    the mean so found. Sums run pairwise over short chunks. A segment of equal values gives exactly that value, and
    elsewhere the error is near one rounding of the segment's *spread*, however many values there are.

    Args:
      values: ``[n]`` floating point; float16 and bfloat16 are computed in float32. Traceable.
      segments: ``[n]`` integers in ``[0, k)``. Under ``jit`` other numbers are not noticed and count nowhere.
      k: number of segments, static.
      weights: ``[n]``, not negative, or None for equal weights. Where all weights of a segment are zero its values count equally.
      fill: what an empty segment gets.

    Returns:
      ``[k]`` means, float32, or float64 for float64 values.

    Raises:
      ValueError: ``k`` below 1, shapes that differ, values that are empty, not floating point, NaN or infinite; negative
        weights; segment numbers outside ``[0, k)``. What concerns the content is checked on concrete arrays only.

    Example:
      >>> import numpy as np
      >>> segment_means(np.float32([1, 3, 0.1, 0.1, 0.1]), np.array([0, 0, 2, 2, 2]), 3).tolist() == [2, 0, np.float32(0.1)]
      True
    """
    k = _check_k(k)
    x = _check_values(values)
    segments = jnp.asarray(segments)
    if segments.shape != x.shape:
        raise ValueError(f"segments must have the shape of values, {x.shape}, got {segments.shape}")
    if not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(f"segments must be integers, got {segments.dtype}")
    if _concrete(segments):
        low, high = int(segments.min()), int(segments.max())
        if low < 0 or high >= k:
            raise ValueError(f"segments must lie in [0, {k}), got numbers from {low} to {high}")
    return _segment_means(x, segments, _check_weights(weights, x), k, fill)


@functools.partial(jax.jit, static_argnames="k")
def _segment_means(x: jax.Array, segments: jax.Array, weights: jax.Array | None, k: int, fill: Any) -> jax.Array:
    # Compared in the segments' own type, whose range may end below k.
    valid = segments >= 0 if k > jnp.iinfo(segments.dtype).max else (segments >= 0) & (segments < k)
    segments = jnp.where(valid, segments.astype(index_dtype(k + 1)), np.array(k, index_dtype(k + 1)))
    if weights is not None:
        weights = _uniform_if_zero(weights)
        mass = _segment_sums(weights, segments, None, jnp.zeros(k, x.dtype)).residual
        weights = jnp.where(jnp.append(mass > 0, True)[segments], weights, 1)
    low, high = _segment_range(x, segments, weights, k)
    found = low <= high
    centre = jnp.where(found, low, 0)
    for _ in range(2):
        mass, residual = _segment_sums(x, segments, weights, centre)
        centre = jnp.clip(centre + residual / jnp.where(found, mass, 1), low, high)
    return jnp.where(found, centre, jnp.asarray(fill, x.dtype))


# --------------------------------------------------------------------------------------------------------------------
# Lloyd's algorithm
# --------------------------------------------------------------------------------------------------------------------


def _assign(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """``[n]`` index of the nearest entry of an ascending codebook; of equals, the first."""
    k = codebook.shape[0]
    lower, upper = codebook[:-1], codebook[1:]
    middle = lower + (upper - lower) / 2
    # Between neighbouring floats the middle rounds to one of them: the upper one must stay above it.
    middle = jnp.where(middle >= upper, lower, middle)
    middle = jnp.where(lower == codebook[-1], jnp.inf, middle)  # surplus entries take nothing
    if k <= _ASSIGN_BY_COMPARING_MAX_K:
        return (x[None, :] > middle[:, None]).sum(0, dtype=index_dtype(k))
    return jnp.searchsorted(middle, x, method="scan_unrolled").astype(index_dtype(k))


def nearest(values: Any, codebook: Any) -> jax.Array:
    """Index of the nearest entry of an ascending codebook for each value; of two equally near, the first.

    Args:
      values: ``[n]`` floating point; float16 and bfloat16 are computed in float32. Traceable.
      codebook: ``[k]`` floating point, ascending. Of entries equal to the largest the first is taken, of other equal entries any.

    Returns:
      ``[n]`` indices, the smallest unsigned type for ``k``.

    Raises:
      ValueError: arguments that are not floating-point vectors, empty, NaN or infinite, or a codebook that is not
        ascending. What concerns the content is checked on concrete arrays only.

    Example:
      >>> import numpy as np
      >>> nearest(np.float32([-3, 0.4, 0.6]), np.float32([-1, 0, 1])).tolist()
      [0, 1, 2]
    """
    x, centres = _check_values(values), _check_values(codebook, "codebook")
    if _concrete(centres) and bool((centres[1:] < centres[:-1]).any()):
        raise ValueError("codebook must be in ascending order")
    return _nearest(x, centres.astype(x.dtype))


_nearest = jax.jit(_assign)


def _squares(x: jax.Array, segments: jax.Array, weights: jax.Array | None, codebook: jax.Array) -> jax.Array:
    square = jnp.square(x - codebook[segments])
    return square if weights is None else weights * square


class _State(NamedTuple):
    codebook: jax.Array  # [k] ascending, surplus entries repeat the largest
    moved: jax.Array  # [] largest move of an entry in the last iteration
    error: jax.Array  # [] root of the mean squared error before the last iteration
    split: jax.Array  # [] whether the last iteration split clusters to fill empty ones
    iterations: jax.Array  # []
    last: jax.Array  # [] the iteration to stop at: a split grants max_iterations more


def _lloyd(
    x: jax.Array, weights: jax.Array | None, codebook: jax.Array, max_iterations: Any, tolerance: Any
) -> tuple[jax.Array, jax.Array]:
    """Lloyd iterations from an ascending codebook: the codebook and how many iterations it took."""
    k = codebook.shape[0]

    def split(operands: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        # The clusters of the largest error that hold more than one value are halved, one for each empty cluster. Their
        # extremes are the new entries: both halves then have a member for certain.
        segments, means, squares = operands
        low, high = _segment_range(x, segments, weights, k)
        divisible = high > low
        square = _segment_sums(squares, segments, None, jnp.zeros(k, x.dtype)).residual
        order = jnp.argsort(jnp.where(divisible, -square, jnp.inf))
        empty = jnp.isinf(means)
        n_split = jnp.minimum(divisible.sum(), empty.sum())
        place = jnp.cumsum(empty) - 1
        target = order[jnp.clip(place, 0, k - 1)]
        halved = jnp.zeros(k, bool).at[order].set(lax.iota(jnp.int32, k) < n_split)
        means = jnp.where(halved, low, means)
        return jnp.where(empty & (place < n_split), high[target], means), n_split > 0

    def step(state: _State) -> _State:
        segments = _assign(x, state.codebook)
        mass, residual = _segment_sums(x, segments, weights, state.codebook)
        squares = _squares(x, segments, weights, state.codebook)
        means = jnp.where(mass > 0, state.codebook + residual / jnp.where(mass > 0, mass, 1), jnp.inf)
        means, was_split = lax.cond(
            (mass > 0).all(), lambda operands: (operands[1], jnp.array(False)), split, (segments, means, squares)
        )
        means = jnp.sort(means)
        means = jnp.where(jnp.isinf(means), jnp.where(jnp.isinf(means), -jnp.inf, means).max(), means)
        moved = jnp.abs(means - state.codebook).max()
        iterations = state.iterations + 1
        last = jnp.where(was_split, iterations + max_iterations, state.last)
        return _State(means, moved, jnp.sqrt(_total(squares) / mass.sum()), was_split, iterations, last)

    def unfinished(state: _State) -> jax.Array:
        # A split leaves every cluster with a member, so that fewer are empty each time: splitting ends by itself.
        return (state.split | (state.moved > tolerance * state.error)) & (state.iterations < state.last)

    one = jnp.ones((), x.dtype)
    start = _State(codebook, one, 0 * one, jnp.array(True), jnp.zeros((), jnp.int32), jnp.asarray(max_iterations, jnp.int32))
    end = lax.while_loop(unfinished, step, start)
    return end.codebook, end.iterations


# --------------------------------------------------------------------------------------------------------------------
# The start: a histogram over ordered bit patterns, and the optimum of a coarse one
# --------------------------------------------------------------------------------------------------------------------


def _to_key(x: jax.Array) -> jax.Array:
    """The leading 32 bits of each value, as uint32 in the order of the values."""
    if x.dtype == jnp.float64:
        wide = lax.bitcast_convert_type(x, jnp.uint64) >> 32
        pattern = wide.astype(jnp.uint32)
    else:
        pattern = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(pattern >> 31 == 1, ~pattern, pattern | jnp.uint32(1 << 31))


def _from_key(key: jax.Array, dtype: Any) -> jax.Array:
    pattern = jnp.where(key >> 31 == 1, key & jnp.uint32(2**31 - 1), ~key)
    if dtype == jnp.float64:
        return lax.bitcast_convert_type(pattern.astype(jnp.uint64) << 32, jnp.float64)
    return lax.bitcast_convert_type(pattern, jnp.float32)


def _histogram(x: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Cells that stand for many values: ascending representatives and masses, both ``[2^14 + 2^16]``.

    The first level counts values by the leading bits of their keys. The second divides those cells by their next 16 bits
    into equal parts, half of them handed out by mass and half by ``(mass * width^2)^(1/3)``, the allotment that minimises
    the squared error of rounding values to cells.
    """
    n_coarse, dtype = 2**_COARSE_BITS, x.dtype
    key = _to_key(x)
    coarse = (key >> (32 - _COARSE_BITS)).astype(jnp.int32)
    rest_shift = 32 - _COARSE_BITS - 16
    rest = (key >> rest_shift) & jnp.uint32(2**16 - 1)

    def count(cells: jax.Array, size: int) -> jax.Array:
        # Counts are integers: a float32 accumulator would stop at 2^24 equal values.
        if weights is None:
            return jnp.zeros(size, jnp.int32).at[cells].add(1, mode="promise_in_bounds").astype(dtype)
        return jnp.zeros(size, dtype).at[cells].add(weights, mode="promise_in_bounds")

    mass = count(coarse, n_coarse)
    edges = _from_key(lax.iota(jnp.uint32, n_coarse) << (32 - _COARSE_BITS), dtype)
    used = mass > 0
    width = jnp.where(used, jnp.abs(jnp.append(edges[1:], edges[-1]) - edges), 0)
    width = jnp.where(jnp.isfinite(width), width, jnp.finfo(dtype).max / 4)
    mass_share = mass / mass.sum()
    error_share = jnp.cbrt(mass_share) * jnp.square(jnp.cbrt(width / width.max()))
    share = mass_share / 2 + error_share / error_share.sum() / 2
    parts = used + jnp.floor(share * (_FINE_CELLS - 1)).astype(jnp.int32)
    end = jnp.cumsum(parts)
    base = end - parts
    fine = base[coarse] + ((rest * parts[coarse].astype(jnp.uint32)) >> 16).astype(jnp.int32)

    size = n_coarse + _FINE_CELLS
    cell = lax.iota(jnp.int32, size)
    parent = jnp.minimum(jnp.searchsorted(end, cell, side="right"), n_coarse - 1).astype(jnp.int32)
    position = (cell - base[parent]).astype(jnp.uint32)
    middle = (((2 * position + 1) << 15) // jnp.maximum(parts[parent], 1).astype(jnp.uint32)) << rest_shift
    representative = _from_key((parent.astype(jnp.uint32) << (32 - _COARSE_BITS)) + middle, dtype)
    return jnp.where(cell < end[-1], representative, x.max()), count(fine, size)


def _coarsen(x: jax.Array, mass: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Joins ascending points into ``size`` neighbouring groups: their means and masses, without loss where they suffice."""
    previous = jnp.append(-jnp.inf, x[:-1])
    used = mass > 0
    rank = jnp.maximum(jnp.cumsum(used & (x != previous)) - 1, 0)
    # Widths are gaps between points of some mass: cells of sparse tails are mostly empty and much narrower than the gaps.
    low, high = jnp.where(used, x, jnp.inf).min(), jnp.where(used, x, -jnp.inf).max()
    before = jnp.maximum(jnp.append(low, lax.cummax(jnp.where(used, x, -jnp.inf))[:-1]), low)
    after = jnp.minimum(jnp.append(lax.cummin(jnp.where(used, x, jnp.inf), reverse=True)[1:], high), high)
    error_share = jnp.cbrt(mass) * jnp.square(jnp.cbrt((after - before) / 2))
    share = error_share / jnp.maximum(error_share.sum(), jnp.finfo(x.dtype).tiny)
    level = jnp.cumsum(share) - share / 2
    group = jnp.where(rank[-1] < size, rank, jnp.clip(level * size, 0, size - 1).astype(rank.dtype))
    # Joined with a neighbour of zero mass, a group must still be centred where its mass lies.
    first = jnp.full(size, jnp.inf, x.dtype).at[group].min(jnp.where(used, x, jnp.inf))
    first = jnp.where(jnp.isinf(first), 0, first)
    total = jnp.zeros(size, x.dtype).at[group].add(mass)
    offset = jnp.zeros(size, x.dtype).at[group].add(mass * (x - first[group]))
    return first + offset / jnp.where(total > 0, total, 1), total


_Triple = tuple[jax.Array, jax.Array, jax.Array]


def _optimum(x: jax.Array, mass: jax.Array, k: int) -> jax.Array:
    """Exact k-means of few ascending points by dynamic programming: the group, in ``[0, k)``, of each point."""
    m = x.shape[0]
    place = lax.iota(jnp.int32, m)

    def extend(carry: _Triple, point: _Triple) -> tuple[_Triple, jax.Array]:
        # Error of the intervals [i, j] for all i at once, from that of [i, j - 1]: only sums of positive terms, where
        # differences of prefix sums would cancel.
        total, mean, error = carry
        j, xj, wj = point
        inside = place <= j
        grown = total + wj
        portion = jnp.where(grown > 0, wj / jnp.where(grown > 0, grown, 1), 0)
        delta = xj - mean
        error = jnp.where(inside, error + delta * delta * portion * total, jnp.inf)
        total = jnp.where(inside, grown, 0)
        mean = jnp.where(inside, mean + delta * portion, 0)
        return (total, mean, jnp.where(inside, error, 0)), error

    zero = jnp.zeros(m, x.dtype)
    _, cost = lax.scan(extend, (zero, zero, zero), (place, x, mass))  # cost[j, i]: points i..j in one group

    def add_group(best: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        before = jnp.append(jnp.inf, best[:-1])
        return (before[None, :] + cost).min(1), before

    _, before = lax.scan(add_group, cost[:, 0], None, length=k - 1)  # before[q, i]: points 0..i-1 in q + 1 groups

    def walk_back(last: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.argmin(row + cost[last]).astype(jnp.int32)
        return first - 1, first

    _, firsts = lax.scan(walk_back, jnp.int32(m - 1), before, reverse=True)
    return (place[None, :] >= firsts[:, None]).sum(0, dtype=jnp.int32)


def _start(x: jax.Array, mass: jax.Array, k: int) -> jax.Array:
    """``[k]`` ascending first codebook for ascending points."""
    if k > _PROGRAMME_MAX_K:
        means, totals = _coarsen(x, mass, k)
    else:
        points, weights = _coarsen(x, mass, max(k, min(_PROGRAMME_POINTS, x.shape[0])))
        scale = jnp.abs(points).max()
        groups = _optimum(points / jnp.where(scale > 0, scale, 1), weights / weights.max(), k)
        low, _ = _segment_range(points, groups, weights, k)
        low = jnp.where(jnp.isinf(low), 0, low)
        totals, residual = _segment_sums(points, groups, weights, low)
        means = low + residual / jnp.where(totals > 0, totals, 1)
    means = jnp.sort(jnp.where(totals > 0, means, jnp.inf))
    return jnp.where(jnp.isinf(means), jnp.where(jnp.isinf(means), -jnp.inf, means).max(), means)


def kmeans_scalar(
    values: Any, k: int, weights: Any | None = None, *, max_iterations: int = 300, tolerance: float = 1e-4
) -> ScalarKMeans:
    """Weighted k-means of numbers: the ``k`` values that stand for all with the least squared error.

    Minimises ``sum_i w_i (x_i - c_{a(i)})^2 / sum_i w_i`` over the codebook ``c`` and the assignment ``a``. Pure, and traceable
    with static ``k``. There is no random start: it is the optimum of a histogram of 1,024 cells by dynamic programming, or,
    above ``k = 256``, the quantiles of a density near the asymptotically optimal one. Up to 32,768 values the Lloyd
    iterations run on the values; beyond, on a histogram of at most 81,920 cells fitted to the data, and then twice on all
    values. Entries that lose their members are placed anew by halving the clusters of the largest error, so that entries
    differ while distinct values remain. With at most ``k`` distinct values the result is exact.

    The same input gives the same result on the same device, except that GPUs add in no fixed order where there are weights or
    ``k`` exceeds 16: last bits may then differ.

    Args:
      values: ``[n]`` floating point; float16 and bfloat16 are computed in float32.
      k: number of codebook entries, static; may exceed the number of values.
      weights: ``[n]``, not negative, or None for equal weights. Zeros everywhere count as equal weights.
      max_iterations: most Lloyd iterations on the histogram, or on the values where there is no histogram.
      tolerance: iterations end when no entry moves further than this part of the root mean squared error.

    Returns:
      Codebook, indices, mean squared error and number of iterations: see :class:`ScalarKMeans`.

    Raises:
      ValueError: ``k`` below 1; values that are not a vector, empty, not floating point, NaN or infinite; weights of another
        shape, negative, NaN or infinite. What concerns the content is checked on concrete arrays only.

    Example:
      >>> import numpy as np
      >>> result = kmeans_scalar(np.float32([0.9, -2.0, 1.1, 1.0, -2.0]), 2)
      >>> result.codebook.tolist(), result.indices.tolist(), result.indices.dtype
      ([-2.0, 1.0], [1, 0, 1, 1, 0], dtype('uint8'))
    """
    k = _check_k(k)
    x = _check_values(values)
    weights = _check_weights(weights, x)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    return _kmeans_scalar(x, k, weights, max_iterations, tolerance)


@functools.partial(jax.jit, static_argnames="k")
def _kmeans_scalar(x: jax.Array, k: int, weights: jax.Array | None, max_iterations: Any, tolerance: Any) -> ScalarKMeans:
    iterations = jnp.zeros((), jnp.int32)
    if weights is not None:
        weights = _uniform_if_zero(weights)
    if x.size <= _DIRECT:
        mass = jnp.ones_like(x) if weights is None else weights
        # Values of no weight go to the end and take the place of the largest that has some.
        points, mass = lax.sort((jnp.where(mass > 0, x, jnp.inf), mass), num_keys=1)
        points = jnp.where(mass > 0, points, jnp.where(mass > 0, points, -jnp.inf).max())
        codebook = _start(points, mass, k)
    else:
        points, mass = _histogram(x, weights)
        codebook, iterations = _lloyd(points, mass, _start(points, mass, k), max_iterations, tolerance)
        max_iterations = _EXACT_PASSES
    codebook, exact_iterations = _lloyd(x, weights, codebook, max_iterations, tolerance)
    indices = _assign(x, codebook)
    mass = jnp.asarray(x.size, x.dtype) if weights is None else _total(weights)
    mse = _total(_squares(x, indices, weights, codebook)) / mass
    return ScalarKMeans(codebook, indices, mse, iterations + exact_iterations)
