"""k-means on weights: Lloyd's algorithm in one dimension, and the careful means that go with it.

Lloyd's algorithm needs a good start and many passes over the weights. Here nearly all of its work is done on a
histogram of a few ten thousand cells, whose widths follow the data (:mod:`bqjax.histogram`). The start is the exact
optimum of a coarser histogram by dynamic programming, which a poor local optimum cannot trap. One pass over all weights
then makes the entries exact means, and a last one assigns every weight to the nearest.

Memory stays linear in the number of weights: no array of ``n * k`` entries exists at any time.

References:
  Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.histogram import coarsen, histogram, optimal_groups
from bqjax.leaves import index_dtype
from bqjax.segments import (
    check_k,
    check_values,
    check_weights,
    concrete,
    pairwise,
    segment_sums,
    total_of,
    uniform_if_zero,
)

__all__ = ["ScalarKMeans", "kmeans_scalar", "nearest"]

# Inputs up to this size are clustered as they are; a histogram stands in for larger ones until the last passes.
_DIRECT = 2**15
# Passes over all values after one that had to split clusters, where a histogram stands in for them.
_PASSES_AFTER_SPLIT = 2
# The dynamic programme sees this many points and is used up to this k: k * points^2 operations.
_PROGRAMME_POINTS = 1024
_PROGRAMME_MAX_K = 256
# Up to this k comparing with every midpoint beats a binary search.
_ASSIGN_BY_COMPARING_MAX_K = 64
# Up to this k comparing with all boundaries beats adding up by index.
_SUM_BY_COMPARING_MAX_K = 32
_ROWS, _LANES = 64, 256
# Points of a block in Lloyd's iterations on ascending points.
_BLOCK = 256


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
# Lloyd's algorithm
# --------------------------------------------------------------------------------------------------------------------


def _middles(codebook: jax.Array) -> jax.Array:
    """``[k - 1]`` largest values, or nearly so, that are nearer to the lower of two neighbours or equally near."""
    lower, upper = codebook[:-1], codebook[1:]
    middle = lower + (upper - lower) / 2
    # Between neighbouring floats the middle rounds to one of them: the upper one must stay above it.
    middle = jnp.where(middle >= upper, lower, middle)
    return jnp.where(lower == codebook[-1], jnp.inf, middle)  # surplus entries take nothing


def _assign(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """``[n]`` index of the nearest entry of an ascending codebook; of equals, the first. Any index for NaN."""
    k, middle = codebook.shape[0], _middles(codebook)
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
    x, centres = check_values(values), check_values(codebook, "codebook")
    if concrete(centres) and bool((centres[1:] < centres[:-1]).any()):
        raise ValueError("codebook must be in ascending order")
    return _nearest(x, centres.astype(x.dtype))


_nearest = jax.jit(_assign)


class _Sums(NamedTuple):
    mass: jax.Array  # [k] sum of weights
    residual: jax.Array  # [k] sum of weight * (value - entry)


def _sums(x: jax.Array, weights: jax.Array | None, codebook: jax.Array) -> _Sums:
    """Sums over the values nearest to each entry; NaN counts nowhere."""
    k = codebook.shape[0]
    if k > _SUM_BY_COMPARING_MAX_K:
        segments = jnp.where(jnp.isnan(x), k, _assign(x, codebook).astype(index_dtype(k + 1)))
        return _Sums(*segment_sums(jnp.where(jnp.isnan(x), 0, x), segments, weights, codebook))
    middle = _middles(codebook)
    above = jnp.concatenate([jnp.full(1, -jnp.inf, x.dtype), middle])[:, None]
    upto = jnp.concatenate([middle, jnp.full(1, jnp.inf, x.dtype)])[:, None]
    lanes = min(_LANES, x.size)

    def lines(a: jax.Array, fill: float) -> jax.Array:
        a = jnp.pad(a, (0, -a.size % lanes), constant_values=fill).reshape(-1, lanes)
        rows = min(_ROWS, a.shape[0])
        return jnp.pad(a, ((0, -a.shape[0] % rows), (0, 0)), constant_values=fill).reshape(-1, rows, lanes)

    def chunk_sums(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        def add(i: Any, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            value = chunk[0][i][None]
            hit = (value > above) & (value <= upto)
            w = chunk[1][i][None] if len(chunk) > 1 else jnp.ones((), x.dtype)
            mass = total[0] + (hit if len(chunk) == 1 else jnp.where(hit, w, 0))
            return mass, total[1] + jnp.where(hit, w * (value - codebook[:, None]), 0)

        zero = jnp.zeros((k, lanes), x.dtype)
        return lax.fori_loop(0, chunk[0].shape[0], add, (zero.astype(jnp.int32) if len(chunk) == 1 else zero, zero))

    operands = (lines(x, jnp.nan),) + (() if weights is None else (lines(weights, 0),))
    return _Sums(*(pairwise(pairwise(total).T).astype(x.dtype) for total in lax.map(chunk_sums, operands)))


def _ascending(means: jax.Array) -> jax.Array:
    """Sorted, with the largest finite entry in place of infinite ones."""
    means = jnp.sort(means)
    return jnp.where(jnp.isinf(means), jnp.where(jnp.isinf(means), -jnp.inf, means).max(), means)


class _State(NamedTuple):
    codebook: jax.Array  # [k] ascending, surplus entries repeat the largest
    moved: jax.Array  # [] largest move of an entry in the last iteration
    split: jax.Array  # [] whether the last iteration split clusters to fill empty ones
    iterations: jax.Array  # []
    last: jax.Array  # [] the iteration to stop at: a split grants more


def _lloyd(
    x: jax.Array, weights: jax.Array | None, codebook: jax.Array, passes: Any, after_split: Any, settled: Any
) -> tuple[jax.Array, jax.Array]:
    """Lloyd iterations from an ascending codebook: the codebook and how many iterations it took.

    They end after ``passes``, or ``after_split`` further ones where clusters were split, or when no entry moves further than
    ``settled``.
    """
    k = codebook.shape[0]

    def split(means: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The clusters of the largest error that hold more than one value are halved, one for each empty cluster. Their
        # extremes are the new entries: both halves then have a member for certain.
        segments = jnp.where(jnp.isnan(x) if weights is None else weights <= 0, k, _assign(x, before).astype(jnp.int32))
        low = jnp.full(k, jnp.inf, x.dtype).at[segments].min(x, mode="drop")
        high = jnp.full(k, -jnp.inf, x.dtype).at[segments].max(x, mode="drop")
        divisible = high > low
        squares = jnp.square(x - before[segments])
        square = jnp.zeros(k, x.dtype).at[segments].add(squares if weights is None else weights * squares, mode="drop")
        order = jnp.argsort(jnp.where(divisible, -square, jnp.inf))
        empty = jnp.isinf(means)
        n_split = jnp.minimum(divisible.sum(), empty.sum())
        place = jnp.cumsum(empty) - 1
        target = order[jnp.clip(place, 0, k - 1)]
        halved = jnp.zeros(k, bool).at[order].set(lax.iota(jnp.int32, k) < n_split)
        means = jnp.where(halved, low, means)
        return _ascending(jnp.where(empty & (place < n_split), high[target], means)), n_split > 0

    def step(state: _State) -> _State:
        mass, residual = _sums(x, weights, state.codebook)
        means = jnp.where(mass > 0, state.codebook + residual / jnp.where(mass > 0, mass, 1), jnp.inf)
        means, was_split = lax.cond(
            (mass > 0).all(), lambda means, _: (lax.cummax(means), jnp.array(False)), split, means, state.codebook
        )
        moved = jnp.abs(means - state.codebook).max()
        iterations = state.iterations + 1
        last = jnp.where(was_split, iterations + after_split, state.last)
        return _State(means, moved, was_split, iterations, last)

    def unfinished(state: _State) -> jax.Array:
        # A split leaves every cluster with a member, so that fewer are empty each time: splitting ends by itself.
        return (state.split | (state.moved > settled)) & (state.iterations < state.last)

    start = _State(codebook, jnp.zeros((), x.dtype), jnp.array(True), jnp.zeros((), jnp.int32), jnp.asarray(passes, jnp.int32))
    end = lax.while_loop(unfinished, step, start)
    return end.codebook, end.iterations


_Quadruple = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _lloyd_on_points(
    points: jax.Array, mass: jax.Array, codebook: jax.Array, max_iterations: Any, tolerance: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lloyd iterations on ascending points: the codebook, the distance of moves that do not count, the iterations.

    A cluster is a run of points: whole blocks of them, known by their mass and mean, and parts of two more. An iteration
    costs ``k * sqrt(points)`` instead of ``k * points``, and adds up only terms about the entry, where differences of prefix
    sums would cancel. Entries without members stay where they are.
    """
    size, k = points.size, codebook.shape[0]
    width = min(_BLOCK, size)
    points = jnp.append(points, jnp.broadcast_to(points[-1], -size % width)).reshape(-1, width)
    mass = jnp.append(mass, jnp.zeros(-size % width, mass.dtype)).reshape(-1, width)
    blocks = points.shape[0]
    block_mass = mass.sum(1)
    offset = (mass * (points - points[:, :1])).sum(1) / jnp.where(block_mass > 0, block_mass, 1)
    block_mean = points[:, 0] + offset
    block, place = lax.iota(jnp.int32, blocks)[None], lax.iota(jnp.int32, width)[None]
    total = block_mass.sum()

    def sums(codebook: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        middle = _middles(codebook)
        row = jnp.maximum((points[None, :, 0] <= middle[:, None]).sum(1, dtype=jnp.int32) - 1, 0)
        within = (points[row] <= middle[:, None]).sum(1, dtype=jnp.int32)
        first = jnp.append(0, row)[:, None], jnp.append(0, within)[:, None]
        last = jnp.append(row, blocks - 1)[:, None], jnp.append(within, width)[:, None]
        same = first[0] == last[0]
        whole = jnp.where((block > first[0]) & (block < last[0]), block_mass[None], 0)
        head = jnp.where((place >= first[1]) & (~same | (place < last[1])), mass[first[0][:, 0]], 0)
        tail = jnp.where((place < last[1]) & ~same, mass[last[0][:, 0]], 0)
        w = jnp.concatenate([whole, head, tail], 1)
        x = (
            jnp.concatenate([jnp.broadcast_to(block_mean[None], (k, blocks)), points[first[0][:, 0]], points[last[0][:, 0]]], 1)
            - codebook[:, None]
        )
        return w.sum(1), (w * x).sum(1), (w * x * x).sum()

    def step(state: _Quadruple) -> _Quadruple:
        codebook, _, _, iterations = state
        member_mass, residual, square = sums(codebook)
        means = lax.cummax(codebook + residual / jnp.where(member_mass > 0, member_mass, 1))
        return means, jnp.abs(means - codebook).max(), tolerance * jnp.sqrt(square / total), iterations + 1

    zero = jnp.zeros((), points.dtype)
    codebook, _, settled, iterations = lax.while_loop(
        lambda state: (state[1] > state[2]) & (state[3] < max_iterations),
        step,
        (codebook, zero + 1, zero, jnp.zeros((), jnp.int32)),
    )
    return codebook, settled, iterations


# --------------------------------------------------------------------------------------------------------------------
# The start: the optimum of a coarse histogram
# --------------------------------------------------------------------------------------------------------------------


def _start(x: jax.Array, mass: jax.Array, k: int) -> jax.Array:
    """``[k]`` ascending first codebook for ascending points."""
    if k > _PROGRAMME_MAX_K:
        means, totals = coarsen(x, mass, k)
    else:
        points, weights = coarsen(x, mass, max(k, min(_PROGRAMME_POINTS, x.shape[0])))
        scale = jnp.abs(points).max()
        groups = optimal_groups(points / jnp.where(scale > 0, scale, 1), weights / weights.max(), k)
        member = groups[None] == lax.iota(jnp.int32, k)[:, None]
        low = jnp.where(member & (weights > 0)[None], points[None], jnp.inf).min(1)
        w = jnp.where(member, weights[None], 0)
        totals = w.sum(1)
        low = jnp.where(totals > 0, low, 0)
        means = low + (w * (points[None] - low[:, None])).sum(1) / jnp.where(totals > 0, totals, 1)
    return _ascending(jnp.where(totals > 0, means, jnp.inf))


def _pad(x: Any, size: int, fill: float) -> Any:
    if x.size == size:
        return x
    # On concrete arrays in NumPy: every eager operation of JAX would be compiled for every size.
    xp: Any = np if concrete(x) else jnp
    return xp.pad(xp.asarray(x), (0, size - x.size), constant_values=fill)


def _cut(x: jax.Array, n: int) -> jax.Array:
    return jnp.asarray(np.asarray(x)[:n]) if concrete(x) else x[:n]


def kmeans_scalar(
    values: Any, k: int, weights: Any | None = None, *, max_iterations: int = 300, tolerance: float = 1e-4
) -> ScalarKMeans:
    """Weighted k-means of numbers: the ``k`` values that stand for all with the least squared error.

    Minimises ``sum_i w_i (x_i - c_{a(i)})^2 / sum_i w_i`` over the codebook ``c`` and the assignment ``a``. Pure, and traceable
    with static ``k``. There is no random start: it is the optimum of a histogram of 1,024 cells by dynamic programming, or,
    above ``k = 256``, the quantiles of a density near the asymptotically optimal one. Up to 32,768 values the Lloyd
    iterations run on the values; beyond, on a histogram of at most 81,920 cells fitted to the data, and then once on all
    values. Entries without members are then placed anew by halving the clusters of the largest error, so that entries
    differ while distinct values remain. With at most ``k`` distinct values the result is exact.

    Inputs are padded to few sizes, so that those of many sizes share compiled code: all up to 32,768 values have one size,
    and beyond there are four to an octave.

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
    k = check_k(k)
    x = check_values(values)
    weights = check_weights(weights, x)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    n, padded = x.size, _padded_size(x.size)
    if weights is None and n <= _DIRECT:
        # Small inputs are sorted together with weights anyway.
        weights = np.ones(n, x.dtype) if concrete(x) else jnp.ones(n, x.dtype)
    x, weights = _pad(x, padded, np.nan), None if weights is None else _pad(weights, padded, 0)
    result = _kmeans_scalar(x, k, weights, max_iterations, tolerance)
    return result if n == padded else result._replace(indices=_cut(result.indices, n))


def _padded_size(n: int) -> int:
    """Few sizes, so that inputs of many sizes share compiled code."""
    if n <= _DIRECT:
        return _DIRECT
    step = 2 ** ((n - 1).bit_length() - 3)
    return -(-n // step) * step


@functools.partial(jax.jit, static_argnames="k")
def _kmeans_scalar(x: jax.Array, k: int, weights: jax.Array | None, max_iterations: Any, tolerance: Any) -> ScalarKMeans:
    """:func:`kmeans_scalar` of padded values: NaN counts nowhere, and its weight is zero."""
    valid = ~jnp.isnan(x)
    if weights is not None:
        weights = jnp.where(valid, uniform_if_zero(weights), 0)
    after_split: Any = _PASSES_AFTER_SPLIT
    if x.size <= _DIRECT:
        after_split = max_iterations
        mass = valid.astype(x.dtype) if weights is None else weights
        # Values of no weight go to the end and take the place of the largest that has some.
        points, mass = lax.sort((jnp.where(mass > 0, x, jnp.inf), mass), num_keys=1)
        points = jnp.where(mass > 0, points, jnp.where(mass > 0, points, -jnp.inf).max())
    else:
        points, mass = histogram(x, weights)
    codebook = _start(points, mass, k)
    if k <= _PROGRAMME_MAX_K:
        codebook, settled, iterations = _lloyd_on_points(points, mass, codebook, max_iterations, tolerance)
    else:
        square = mass * jnp.square(points - codebook[_assign(points, codebook)])
        settled = tolerance * jnp.sqrt(total_of(square) / mass.sum())
        codebook, iterations = _lloyd(points, mass, codebook, max_iterations, max_iterations, settled)
    codebook, exact_iterations = _lloyd(x, weights, codebook, 1, after_split, settled)
    indices = _assign(x, codebook)
    square = jnp.where(valid, jnp.square(x - codebook.at[indices].get(mode="promise_in_bounds")), 0)
    total = valid.sum(dtype=jnp.int32).astype(x.dtype) if weights is None else total_of(weights)
    mse = total_of(square if weights is None else weights * square) / total
    return ScalarKMeans(codebook, indices, mse, iterations + exact_iterations)
