"""Vector k-means of blocks of weights: weighted Lloyd iterations in ``d`` dimensions, in tiles.

Three stages share the work. Seeds come from greedy k-means++ on a few thousand points, most Lloyd iterations run on a
sample of some hundred points per centroid, and the last ones on all points. Sample points are drawn one from every run
of neighbours, in proportion to their weights, and stand for the weight of the whole run: sums over the sample are
unbiased for those over all points.

No step holds anything of the size ``n x k`` (:mod:`bqjax.kmeans.tiles`).

Reference:
  Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from bqjax.kmeans.prepare import (
    check_mask,
    check_weights,
    checked_k,
    matrix,
    moved,
    ones_like_rows,
    power_of_two,
    prepared,
    tiled_points,
    widened,
)
from bqjax.kmeans.seeding import Points, seeds, thin
from bqjax.kmeans.segments import check_k, concrete, exponent_of, over_pieces, times_power
from bqjax.kmeans.tiles import Tiles, nearest_and_error, reseed, table

__all__ = ["VectorKMeans", "kmeans_tiles", "kmeans_vector"]

# Points of the sample that most iterations run on, and of the one that seeds are drawn from.
_SAMPLE, _SAMPLE_PER_ENTRY = 2**15, 512
# On the sample, that many iterations stand for one on all points; one of that many is still done on all points.
_SAMPLE_FACTOR = 5
_SEEDING, _SEEDING_PER_ENTRY = 2**12, 32


class VectorKMeans(NamedTuple):
    """Result of :func:`kmeans_vector`.

    Attributes:
      codebook: ``[k, d]`` float32. Where there are fewer than ``k`` distinct points, surplus entries repeat others or stand
        unused.
      indices: ``[n]``, the smallest unsigned type for ``k``: the nearest codebook entry of every point.
      mse: ``[]``, the weighted mean of squared errors over coordinates, ``sum w (x - c)^2 / sum w``.
      iterations: ``[]`` int32, Lloyd iterations done, on the sample and on all points together.
      repaired: ``[]`` int32, how many times an entry without points was moved to a point of large error.
    """

    codebook: jax.Array
    indices: jax.Array
    mse: jax.Array
    iterations: jax.Array
    repaired: jax.Array


class _State(NamedTuple):
    codebook: jax.Array  # [k, d]
    moved: jax.Array  # [] largest move of a coordinate of an entry in the last iteration
    iterations: jax.Array  # []
    repaired: jax.Array  # []


def _means(sums: jax.Array, codebook: jax.Array) -> jax.Array:
    """``[k, d]`` weighted means; an entry, or a coordinate of one, that no weight falls to stays where it is."""
    d = codebook.shape[1]
    mass = sums[:, d:]
    return jnp.where(mass > 0, sums[:, :d] / jnp.where(mass > 0, mass, 1), codebook)


def _lloyd(points: Tiles, state: _State, passes: Any, tolerance: Any) -> _State:
    """Up to ``passes`` iterations, fewer when no entry moves further than ``tolerance``."""
    d, last = points.x.shape[1], state.iterations + passes

    def iterate(state: _State) -> _State:
        sums = table(points, state.codebook)
        means = _means(sums, state.codebook)
        empty = sums[:, d:].max(1) <= 0
        # Rare after good seeding: only then are single errors looked at.
        means, repaired = lax.cond(empty.any(), lambda c: reseed(points, c, empty), lambda c: (c, jnp.zeros((), jnp.int32)), means)
        moved = jnp.abs(means - state.codebook).max()
        return _State(means, moved, state.iterations + 1, state.repaired + repaired)

    def unfinished(state: _State) -> jax.Array:
        return (state.iterations < last) & (state.moved > tolerance)

    return lax.while_loop(unfinished, iterate, state._replace(moved=jnp.full((), jnp.inf, points.x.dtype)))


@functools.partial(jax.jit, static_argnames=("k", "sampling"))
def _kmeans_vector(
    x: jax.Array,
    weights: jax.Array | None,
    mask: jax.Array | None,
    start: jax.Array | None,
    key: jax.Array,
    k: int,
    iterations: Any,
    sampling: bool,
    tolerance: Any,
) -> VectorKMeans:
    n, d = x.shape
    points, centre, scale = prepared(x, weights, mask)
    sample_size = _sample_size(k)
    seed_key, sample_key, thin_key = jax.random.split(key, 3)
    sample = thin(points, sample_size, sample_key)
    sample = sample._replace(x=moved(sample.x, mask, centre, scale))
    tiles = tiled_points(points, lambda x: moved(x, mask, centre, scale))
    start = None if start is None else (start - centre) * scale
    sampled = sampling and n >= 2 * sample_size
    state = _clustered(tiles, sample, start, (seed_key, thin_key), k, iterations, sampled, tolerance)
    indices, squares = nearest_and_error(tiles, state.codebook)
    factor = d if points.weights.shape[1] == 1 else 1
    mse = squares.sum() / (cast(jax.Array, tiles.weights).sum((1, 2)).sum() * factor) / scale / scale
    # Rounding on the way back must not leave the range of the points.
    low, high = over_pieces(widened, (jnp.full((1, d), jnp.inf, x.dtype), jnp.full((1, d), -jnp.inf, x.dtype)), x, points.weights)
    codebook = jnp.where(low <= high, jnp.clip(state.codebook / scale + centre, low, high), 0)
    return VectorKMeans(codebook, indices.reshape(-1)[:n], mse, state.iterations, state.repaired)


def _sample_size(k: int) -> int:
    return max(_SAMPLE, _SAMPLE_PER_ENTRY * k)


def _clustered(
    tiles: Tiles,
    sample: Points,
    start: jax.Array | None,
    keys: tuple[jax.Array, jax.Array],
    k: int,
    iterations: Any,
    sampled: bool,
    tolerance: Any,
) -> _State:
    """Seeds from the sample, iterations on it where it is one, and the last ones on all points."""
    tolerance = jnp.asarray(tolerance, sample.x.dtype)
    full_iterations = jnp.maximum(1, iterations // _SAMPLE_FACTOR) if sampled else iterations
    seed_key, thin_key = keys
    codebook = seeds(thin(sample, max(_SEEDING, _SEEDING_PER_ENTRY * k), thin_key), k, seed_key) if start is None else start
    zero = jnp.zeros((), jnp.int32)
    state = _State(codebook, jnp.zeros((), sample.x.dtype), zero, zero)
    if sampled:
        state = _lloyd(tiled_points(sample), state, _SAMPLE_FACTOR * (iterations - full_iterations), tolerance)
    return _lloyd(tiles, state, full_iterations, tolerance)


@functools.partial(jax.jit, static_argnames=("d", "k", "sampling"))
def kmeans_tiles(
    matrix: jax.Array,
    d: int,
    k: int,
    *,
    key: jax.Array,
    start: jax.Array | None = None,
    iterations: int = 25,
    sampling: bool = True,
    tolerance: float = 1e-5,
) -> VectorKMeans:
    """:func:`kmeans_vector` of a matrix ``[rows * d, columns]`` whose points are ``d`` neighbours of a column, all of one weight.

    They are read where they lie, so that memory is one copy of them, their indices and little else. For matrices of some
    hundred to some thousand columns. Nothing is checked.

    Returns:
      As :func:`kmeans_vector`, the indices ``[rows, columns]``.

    Example:
      >>> import numpy as np
      >>> x = np.float32([[0, 0, 9], [1, 1, 9], [9, 0, 0], [9, 1, 1]])
      >>> kmeans_tiles(jnp.asarray(x), 2, 2, key=jax.random.key(0)).mse.item()
      0.0
    """
    x = matrix.astype(jnp.float32).reshape(-1, d, matrix.shape[1])
    rows, _, columns = x.shape
    n, sample_size = rows * columns, _sample_size(k)
    # Of sums of few terms each: float32 loses nothing that counts.
    centre = x.mean(2).mean(0)[None]
    scale = power_of_two(jnp.abs(x - centre[..., None]).max())
    tiles = Tiles((x - centre[..., None]) * scale, None, None)
    seed_key, sample_key, thin_key = jax.random.split(key, 3)
    stride = max(1, n // sample_size)
    drawn = jax.random.randint(sample_key, (n // stride,), 0, stride)
    at = lax.iota(jnp.int32, n // stride) * stride + drawn
    drawn_points = tiles.x[at // columns, :, at % columns]
    sample = Points(drawn_points, ones_like_rows(drawn_points), None)
    sampled = sampling and n >= 2 * sample_size
    start = None if start is None else (start - centre) * scale
    state = _clustered(tiles, sample, start, (seed_key, thin_key), k, iterations, sampled, tolerance)
    indices, squares = nearest_and_error(tiles, state.codebook)
    mse = squares.sum() / x.size / scale / scale
    # Rounding on the way back must not leave the range of the points.
    codebook = jnp.clip(state.codebook / scale + centre, x.min((0, 2))[None], x.max((0, 2))[None])
    return VectorKMeans(codebook, indices, mse, state.iterations, state.repaired)


def kmeans_vector(
    points: Any,
    k: int,
    weights: Any = None,
    *,
    key: jax.Array,
    mask: Any = None,
    start: Any = None,
    iterations: int = 25,
    sampling: bool = True,
    tolerance: float = 1e-5,
) -> VectorKMeans:
    """Weighted vector k-means: clusters points into ``k``, minimising ``sum_i w_i |x_i - c(i)|^2``.

    With one weight a point, a centroid is ``sum w x / sum w`` over its points and the nearest one is that of least plain
    distance. With a weight for every coordinate (a diagonal Fisher matrix) means are taken coordinate by coordinate and
    the distance is weighted too; a point whose weights are all zero goes by plain distance. Points of weight zero move no
    centroid. One start is made; for ``d = 1`` :func:`bqjax.kmeans.scalar.kmeans_scalar` finds better optima. Deterministic for a
    key; jittable with ``k`` and ``iterations`` closed over. Another number of iterations compiles nothing anew.

    The nearest entry is that of the largest ``c.x - |c|^2 / 2`` in float32, about the mean of the points and with their
    largest coordinate of order 1: an entry can be chosen whose squared distance exceeds the least by some 1e-6 of the largest
    squared coordinate. Beside input and output, memory is one copy of the points and less than one of all else.

    Args:
      points: ``[n, d]`` floating point; computed in float32.
      k: number of codebook entries; may exceed the number of (distinct) points, which then come out within rounding.
      weights: ``[n]`` or ``[n, d]``, not negative; None for equal weights. Where all are zero they count as equal.
      key: a JAX random key.
      mask: ``[n, d]`` booleans, False for entries that are padding: they have neither weight nor distance.
      start: ``[k, d]`` codebook to start from, instead of seeds.
      iterations: most Lloyd iterations on all points.
      sampling: where there are at least ``1024 k`` points (and 65,536), four fifths of the iterations are exchanged for five
        times as many on a sample of ``512 k``, before those on all points: 25 become 100 and 5. That is several times faster
        and, because it converges further, ends at a lower error.
      tolerance: the iterations end when no coordinate moves further, in units of about the largest centred coordinate.

    Raises:
      ValueError: arguments of unfit shape, type or range; NaN or infinite points or weights (concrete ones only).

    Example:
      >>> import numpy as np
      >>> x = np.float32([[0, 0], [0, 2], [9, 9], [9, 9]])
      >>> result = kmeans_vector(x, 2, np.float32([1, 3, 1, 0]), key=jax.random.key(0))
      >>> np.sort(np.float64(result.codebook), 0).round(3).tolist(), round(float(result.mse), 3)
      ([[0.0, 1.5], [9.0, 9.0]], 0.3)
    """
    x, k = matrix(points, "points"), check_k(k)
    weights, mask = check_weights(weights, x), check_mask(mask, x)
    iterations = checked_k(iterations, "iterations")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    if start is not None:
        start = matrix(start, "start")
        if start.shape != (k, x.shape[1]):
            raise ValueError(f"start must have shape {(k, x.shape[1])}, got {start.shape}")
    exponent = exponent_of(x) if concrete(x) and x.size and (start is None or concrete(start)) else 0
    if not exponent:
        return _kmeans_vector(x, weights, mask, start, key, k, iterations, sampling, tolerance)
    x, start = times_power(x, -exponent), None if start is None else times_power(start, -exponent)
    result = _kmeans_vector(x, weights, mask, start, key, k, iterations, sampling, tolerance)
    codebook, mse = (times_power(each, power) for each, power in ((result.codebook, exponent), (result.mse, 2 * exponent)))
    return result._replace(codebook=codebook, mse=mse)
