"""k-means on blocks of weights: weighted Lloyd iterations in ``d`` dimensions, in tiles.

Three stages share the work. Seeds come from greedy k-means++ on a few thousand points, most Lloyd iterations run on a
sample of some hundred points per centroid, and the last ones on all points. Sample points are drawn one from every run
of neighbours, in proportion to their weights, and stand for the weight of the whole run: sums over the sample are
unbiased for those over all points.

No step holds anything of the size ``n x k`` (:mod:`bqjax.tiles`).

Reference:
  Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from bqjax.leaves import index_dtype
from bqjax.seeding import Points, seeds, thin
from bqjax.segments import check_k, concrete, over_pieces
from bqjax.tiles import Tiles, assign_tile, nearest_and_error, reseed, table, tiled

__all__ = ["VectorKMeans", "kmeans_tiles", "kmeans_vector", "nearest_block", "weighted_sums"]

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


def _tiles(points: Points, move: Callable[[jax.Array], jax.Array] = lambda x: x) -> Tiles:
    return Tiles(tiled(points.x, move), tiled(points.weights), None if points.metric is None else tiled(points.metric))


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


def _lloyd(points: Tiles, state: _State, passes: int, tolerance: Any) -> _State:
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


@functools.partial(jax.jit, static_argnames=("k", "iterations", "sampling"))
def _kmeans_vector(
    x: jax.Array,
    weights: jax.Array | None,
    mask: jax.Array | None,
    start: jax.Array | None,
    key: jax.Array,
    k: int,
    iterations: int,
    sampling: bool,
    tolerance: Any,
) -> VectorKMeans:
    n, d = x.shape
    points, centre, scale = _prepared(x, weights, mask)
    sample_size = _sample_size(k)
    seed_key, sample_key, thin_key = jax.random.split(key, 3)
    sample = thin(points, sample_size, sample_key)
    sample = sample._replace(x=_moved(sample.x, mask, centre, scale))
    tiles = _tiles(points, lambda x: _moved(x, mask, centre, scale))
    start = None if start is None else (start - centre) * scale
    sampled = sampling and n >= 2 * sample_size
    state = _clustered(tiles, sample, start, (seed_key, thin_key), k, iterations, sampled, tolerance)
    indices, squares = nearest_and_error(tiles, state.codebook)
    factor = d if points.weights.shape[1] == 1 else 1
    mse = squares.sum() / (cast(jax.Array, tiles.weights).sum((1, 2)).sum() * factor) / scale / scale
    # Rounding on the way back must not leave the range of the points.
    low, high = over_pieces(_widened, (jnp.full((1, d), jnp.inf, x.dtype), jnp.full((1, d), -jnp.inf, x.dtype)), x, points.weights)
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
    iterations: int,
    sampled: bool,
    tolerance: Any,
) -> _State:
    """Seeds from the sample, iterations on it where it is one, and the last ones on all points."""
    tolerance = jnp.asarray(tolerance, sample.x.dtype)
    full_iterations = max(1, iterations // _SAMPLE_FACTOR) if sampled else iterations
    seed_key, thin_key = keys
    codebook = seeds(thin(sample, max(_SEEDING, _SEEDING_PER_ENTRY * k), thin_key), k, seed_key) if start is None else start
    zero = jnp.zeros((), jnp.int32)
    state = _State(codebook, jnp.zeros((), sample.x.dtype), zero, zero)
    if iterations > full_iterations:
        state = _lloyd(_tiles(sample), state, _SAMPLE_FACTOR * (iterations - full_iterations), tolerance)
    return _lloyd(tiles, state, full_iterations, tolerance)


@functools.partial(jax.jit, static_argnames=("d", "k", "iterations", "sampling"))
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
    scale = _power_of_two(jnp.abs(x - centre[..., None]).max())
    tiles = Tiles((x - centre[..., None]) * scale, None, None)
    seed_key, sample_key, thin_key = jax.random.split(key, 3)
    stride = max(1, n // sample_size)
    drawn = jax.random.randint(sample_key, (n // stride,), 0, stride)
    at = lax.iota(jnp.int32, n // stride) * stride + drawn
    drawn_points = tiles.x[at // columns, :, at % columns]
    sample = Points(drawn_points, _ones(drawn_points), None)
    sampled = sampling and n >= 2 * sample_size
    start = None if start is None else (start - centre) * scale
    state = _clustered(tiles, sample, start, (seed_key, thin_key), k, iterations, sampled, tolerance)
    indices, squares = nearest_and_error(tiles, state.codebook)
    mse = squares.sum() / x.size / scale / scale
    # Rounding on the way back must not leave the range of the points.
    codebook = jnp.clip(state.codebook / scale + centre, x.min((0, 2))[None], x.max((0, 2))[None])
    return VectorKMeans(codebook, indices, mse, state.iterations, state.repaired)


def _power_of_two(extent: jax.Array) -> jax.Array:
    """The power of two that brings the extent to order 1: scaling by it rounds nothing."""
    return jnp.where(extent > 0, jnp.exp2(-jnp.round(jnp.log2(jnp.where(extent > 0, extent, 1)))), 1)


def _widened(ends: tuple[jax.Array, jax.Array], _: Any, x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least and largest coordinates of points that count."""
    counted = weights > 0
    low = jnp.where(counted, x, jnp.inf).min(0, keepdims=True)
    high = jnp.where(counted, x, -jnp.inf).max(0, keepdims=True)
    return jnp.minimum(ends[0], low), jnp.maximum(ends[1], high)


def _moved(x: jax.Array, mask: jax.Array | None, centre: jax.Array, scale: jax.Array) -> jax.Array:
    """Coordinates of :func:`_prepared`, which has moved those with a mask itself."""
    return x if mask is not None else (x - centre) * scale


def _prepared(x: jax.Array, weights: jax.Array | None, mask: jax.Array | None) -> tuple[Points, jax.Array, jax.Array]:
    """Points with weights and metric, and the mean and scale that :func:`_moved` takes.

    Coordinates about the weighted mean and of order 1 lose nothing to cancellation in scores. Without a mask they are moved where
    they are used, so that there is no copy of all of them beside the tiles.
    """
    n, d = x.shape
    real = None if mask is None else mask.astype(x.dtype)
    if weights is None:
        weights = _ones(x)
    each = weights.ndim == 2 and weights.shape[1] == d and d > 1
    weights = weights.reshape(n, -1)
    if mask is not None and real is not None:
        weights, x = weights * real, jnp.where(mask, x, 0)
    largest = weights.max()
    uniform = jnp.ones_like(weights) if real is None else real
    weights = jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1), uniform)
    metric = None
    if each:
        # A point without any weight still goes to its nearest entry.
        none = weights.max(1, keepdims=True) <= 0
        metric = jnp.where(none, jnp.ones_like(weights) if real is None else real, weights)
    elif real is not None:
        metric = real
    mass = weights.sum(0)
    centre = jnp.where(mass > 0, (x * weights).sum(0) / jnp.where(mass > 0, mass, 1), 0)[None]
    if real is not None:
        x = (x - centre) * real
    offset = centre if real is None else jnp.zeros_like(centre)
    extent = over_pieces(lambda most, _, x: jnp.maximum(most, jnp.abs(x - offset).max()), jnp.zeros((), x.dtype), x)
    scale = _power_of_two(extent)
    return Points(x if mask is None else x * scale, weights, metric), centre, scale


def _ones(x: jax.Array) -> jax.Array:
    """``[n, 1]`` ones, no constant: XLA would work out, slowly and while it compiles, whatever follows from ones alone."""
    return jnp.where(jnp.isnan(x[:, :1]), jnp.zeros((), x.dtype), jnp.ones((), x.dtype))


def _count(value: Any, what: str) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be an integer, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{what} must be at least 1, got {count}")
    return count


def _matrix(a: Any, what: str) -> jax.Array:
    a = jnp.asarray(a)
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"{what} must be a non-empty matrix of one row per {what[:-1]}, got shape {a.shape}")
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"{what} must be floating point, got {a.dtype}")
    _check_content(a, what)
    return a.astype(jnp.float32)


def _check_content(a: jax.Array, what: str) -> None:
    if concrete(a) and not bool((finite := jnp.isfinite(a)).all()):
        raise ValueError(f"{what} holds {int((~finite).sum())} NaN or infinite entries of {a.size}")


def _check_weights(weights: Any, x: jax.Array) -> jax.Array | None:
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.shape not in (x.shape[:1], x.shape):
        raise ValueError(f"weights must have shape {x.shape[:1]} or {x.shape}, got {weights.shape}")
    _check_content(weights, "weights")
    if concrete(weights) and bool((weights < 0).any()):
        raise ValueError(f"weights must not be negative, the smallest is {float(weights.min())}")
    return weights.astype(jnp.float32)


def _check_mask(mask: Any, x: jax.Array) -> jax.Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.shape != x.shape or mask.dtype != bool:
        raise ValueError(f"mask must be boolean of shape {x.shape}, got {mask.dtype} {mask.shape}")
    return mask


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
    """Clusters points into ``k``, minimising ``sum_i w_i |x_i - c(i)|^2``.

    With one weight a point, a centroid is ``sum w x / sum w`` over its points and the nearest one is that of least plain
    distance. With a weight for every coordinate (a diagonal Fisher matrix) means are taken coordinate by coordinate and
    the distance is weighted too; a point whose weights are all zero goes by plain distance. Points of weight zero move no
    centroid. One start is made; for ``d = 1`` :func:`bqjax.kmeans.kmeans_scalar` finds better optima. Deterministic for a
    key; jittable with ``k`` and the iterations static.

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
    x, k = _matrix(points, "points"), check_k(k)
    weights, mask = _check_weights(weights, x), _check_mask(mask, x)
    iterations = _count(iterations, "iterations")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    if start is not None:
        start = _matrix(start, "start")
        if start.shape != (k, x.shape[1]):
            raise ValueError(f"start must have shape {(k, x.shape[1])}, got {start.shape}")
    return _kmeans_vector(x, weights, mask, start, key, k, iterations, sampling, tolerance)


def nearest_block(points: Any, codebook: Any, *, mask: Any = None, price: Any = None) -> jax.Array:
    """Index of the nearest codebook entry of every point by plain distance; of equals, the first. Traceable.

    Args:
      points: ``[n, d]`` floating point.
      codebook: ``[k, d]`` floating point, in any order.
      mask: ``[n, d]`` booleans, False for coordinates that do not count.
      price: ``[k]``, added to the squared distances of each entry.

    Returns:
      ``[n]``, the smallest unsigned type for ``k``.

    Raises:
      ValueError: arguments of unfit shape or type, NaN or infinite entries (concrete ones only).

    Example:
      >>> import numpy as np
      >>> nearest_block(np.float32([[0, 1], [5, 5]]), np.float32([[4, 4], [0, 0]])).tolist()
      [1, 0]
    """
    x, entries = _matrix(points, "points"), _matrix(codebook, "codebook")
    if entries.shape[1] != x.shape[1]:
        raise ValueError(f"points have {x.shape[1]} coordinates, the codebook's entries {entries.shape[1]}")
    if price is not None and jnp.shape(price) != entries.shape[:1]:
        raise ValueError(f"there are {entries.shape[0]} entries, and prices of shape {jnp.shape(price)}")
    return _nearest_block(x, entries, _check_mask(mask, x), None if price is None else jnp.asarray(price, jnp.float32))


@jax.jit
def _nearest_block(x: jax.Array, codebook: jax.Array, mask: jax.Array | None, price: jax.Array | None) -> jax.Array:
    points, centre, scale = _prepared(x, None, mask)
    tiles = _tiles(points, lambda x: _moved(x, mask, centre, scale))
    entries = (codebook - centre) * scale
    price = None if price is None else price * scale * scale
    indices = lax.map(lambda t: assign_tile(t.x, t.metric, entries, price).astype(index_dtype(codebook.shape[0])), tiles)
    return indices.reshape(-1)[: x.shape[0]]


def weighted_sums(points: jax.Array, weights: jax.Array, indices: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """``sum w x`` and ``sum w`` of the points of every entry, whose quotients are the centroids. Traceable.

    Args:
      points: ``[n, d]``.
      weights: ``[n, d]``, or ``[n, 1]`` for one weight a point.
      indices: ``[n]`` integers below ``k``.
      k: number of entries, static.

    Returns:
      Moments ``[k, d]`` and masses of the weights' width, ``[k, d]`` or ``[k, 1]``.
    """

    def sums(terms: jax.Array) -> jax.Array:
        return jnp.zeros((k, terms.shape[1]), terms.dtype).at[indices].add(terms, mode="promise_in_bounds")

    return sums(points * weights), sums(weights)
