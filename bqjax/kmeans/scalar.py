"""Scalar k-means of weights (the Lloyd-Max quantizer): Lloyd's algorithm in one dimension, and the careful means that go with it.

Lloyd's algorithm needs a good start and many passes over the weights. Here nearly all of its work is done on a
histogram of a few ten thousand cells, whose widths follow the data (:mod:`bqjax.kmeans.histogram`). The start is the exact
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

from bqjax.core.leaves import index_dtype
from bqjax.kmeans.histogram import coarsen, histogram, optimal_groups
from bqjax.kmeans.lloyd import ascending, assign, lloyd, lloyd_on_points
from bqjax.kmeans.segments import (
    CHUNK,
    LANES,
    check_k,
    check_values,
    check_weights,
    concrete,
    exponent_of,
    lane_sums,
    map_pieces,
    over_pieces,
    times_power,
    total_of,
    total_of_lanes,
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
# Values of which a further copy counts.
_LARGE = 2**22


class ScalarKMeans(NamedTuple):
    """Result of :func:`kmeans_scalar`.

    Attributes:
      codebook: ``[k]``, ascending, float32 or float64. With fewer than ``k`` distinct values to be had, the surplus
        entries stand at the end and repeat the largest value; no index points to them.
      indices: ``[n]``, the smallest unsigned type for ``k``: the nearest codebook entry of every value.
      mse: ``[]``, the (weighted) mean of the squared distances of values from their entries; infinite, or zero, where that is
        beyond the dtype.
      iterations: ``[]`` int32, Lloyd iterations done, on the histogram and on all values together.
    """

    codebook: jax.Array
    indices: jax.Array
    mse: jax.Array
    iterations: jax.Array


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
    # NumPy's comparison: XLA's takes the smallest numbers (denormals) for zeros.
    if concrete(centres) and bool((np.asarray(centres)[1:] < np.asarray(centres)[:-1]).any()):
        raise ValueError("codebook must be in ascending order")
    centres = centres.astype(x.dtype)
    if concrete(x) and concrete(centres) and (exponent := max(map(exponent_of, (x, centres)))):
        x, centres = times_power(x, -exponent), times_power(centres, -exponent)
    return _nearest(x, centres)


@jax.jit
def _nearest(x: jax.Array, codebook: jax.Array) -> jax.Array:
    return map_pieces(lambda x: assign(x, codebook), index_dtype(codebook.shape[0]), x)


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
    return ascending(jnp.where(totals > 0, means, jnp.inf))


def _pad(x: Any, size: int, fill: float) -> Any:
    if x.size == size:
        return x
    # Small concrete arrays in NumPy: every eager operation of JAX would be compiled for every size. Large ones are not
    # copied twice.
    xp: Any = np if concrete(x) and x.size < _LARGE else jnp
    return xp.pad(xp.asarray(x), (0, size - x.size), constant_values=fill)


def _cut(x: jax.Array, n: int) -> jax.Array:
    return jnp.asarray(np.asarray(x)[:n]) if concrete(x) else x[:n]


def kmeans_scalar(
    values: Any, k: int, weights: Any | None = None, *, max_iterations: int = 300, tolerance: float = 1e-4
) -> ScalarKMeans:
    """Weighted scalar k-means (Lloyd-Max): the ``k`` values that stand for all with the least squared error.

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
    exponent = exponent_of(x)
    if concrete(x) and not exponent:
        result = _kmeans_scalar(x, k, weights, max_iterations, tolerance)
    else:
        result = _kmeans_scalar(times_power(x, -exponent), k, weights, max_iterations, tolerance)
        codebook, mse = times_power(result.codebook, exponent), times_power(result.mse, 2 * exponent)
        result = result._replace(codebook=codebook, mse=mse)
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
    if weights is not None:
        weights = jnp.where(jnp.isnan(x), 0, uniform_if_zero(weights))
    after_split: Any = _PASSES_AFTER_SPLIT
    if x.size <= _DIRECT:
        after_split = max_iterations
        mass = (~jnp.isnan(x)).astype(x.dtype) if weights is None else weights
        # Values of no weight go to the end and take the place of the largest that has some.
        points, mass = lax.sort((jnp.where(mass > 0, x, jnp.inf), mass), num_keys=1)
        points = jnp.where(mass > 0, points, jnp.where(mass > 0, points, -jnp.inf).max())
    else:
        points, mass = histogram(x, weights)
    codebook = _start(points, mass, k)
    if k <= _PROGRAMME_MAX_K:
        codebook, settled, iterations = lloyd_on_points(points, mass, codebook, max_iterations, tolerance)
    else:
        square = mass * jnp.square(points - codebook[assign(points, codebook)])
        settled = tolerance * jnp.sqrt(total_of(square) / mass.sum())
        codebook, iterations = lloyd(points, mass, codebook, max_iterations, max_iterations, settled)
    codebook, exact_iterations = lloyd(x, weights, codebook, 1, after_split, settled)
    operands = (x,) + (() if weights is None else (weights,))

    def measure(found: tuple[jax.Array, ...], start: Any, x: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
        indices, squares, count = found
        index = assign(x, codebook)
        valid = ~jnp.isnan(x)
        square = jnp.where(valid, jnp.square(x - codebook.at[index].get(mode="promise_in_bounds")), 0)
        lanes = lane_sums(weights[0] * square if weights else square)
        return (
            lax.dynamic_update_slice_in_dim(indices, index, start, 0),
            lax.dynamic_update_slice_in_dim(squares, lanes, start // CHUNK, 0),
            count + valid.sum(dtype=jnp.int32),
        )

    empty = jnp.zeros(x.shape, index_dtype(k)), jnp.zeros((-(-x.size // CHUNK), LANES), x.dtype), jnp.zeros((), jnp.int32)
    indices, squares, count = over_pieces(measure, empty, *operands)
    mse = total_of_lanes(squares) / (count.astype(x.dtype) if weights is None else total_of(weights))
    return ScalarKMeans(codebook, indices, mse, iterations + exact_iterations)
