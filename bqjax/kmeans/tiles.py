"""Points in tiles: the nearest centroid of each, and sums over those of a centroid, without ``n x k`` of anything.

Scores of a tile are compared centroid by centroid in fused loops that keep the best score and its index in registers or
the nearest cache. Memory is linear in the points, whatever the number of centroids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bqjax.core.leaves import index_dtype

__all__ = ["Tiles", "assign_tile", "errors", "nearest_and_error", "reseed", "table", "tiled"]

# Points of a tile: best scores, indices and coordinates of one stay in the second-level cache.
_TILE = 4096
# Centroids compared in one fused loop over a tile. Up to this d their scores are written out, beyond it they are a product.
_UNROLLED_MAX_D = 32
_UNROLLED_TERMS = 64
_UNROLLED_CENTROIDS = 16


class Tiles(NamedTuple):
    """Points with the last axis long, in tiles; padding has weight 0."""

    x: jax.Array  # [tiles, d, t]
    weights: jax.Array | None  # [tiles, 1, t], or [tiles, d, t] for weights of coordinates; None: all 1, and no padding
    metric: jax.Array | None  # [tiles, d, t] factors of squared differences in the distance; None: all 1


def _tile_shape(n: int) -> tuple[int, int]:
    tiles = -(-n // _TILE)
    size = -(-n // tiles)
    return tiles, -(-size // 16) * 16


def tiled(a: jax.Array, prepare: Callable[[jax.Array], jax.Array] = lambda piece: piece) -> jax.Array:
    """``[n, c] -> [tiles, c, t]`` of ``prepare(a)``, row by row, with zeros behind the end."""
    tiles, size = _tile_shape(a.shape[0])
    before, columns = (tiles - 1) * size, a.shape[1]

    # Tile by tile: XLA would make a second copy of all points for a transposition of them.
    def put(i: Any, out: jax.Array) -> jax.Array:
        tile = prepare(lax.dynamic_slice_in_dim(a, i * size, size)).T
        return lax.dynamic_update_slice_in_dim(out, tile[None], i, 0)

    last = jnp.pad(prepare(a[before:]), ((0, before + size - a.shape[0]), (0, 0)))
    if tiles == 1:
        return last.T[None]
    out = lax.fori_loop(0, tiles - 1, put, jnp.zeros((tiles, columns, size), a.dtype))
    return lax.dynamic_update_slice_in_dim(out, last.T[None], tiles - 1, 0)


def _at(a: jax.Array, i: Any) -> jax.Array:
    return lax.dynamic_index_in_dim(a, i, 0, keepdims=False)


def assign_tile(x: jax.Array, metric: jax.Array | None, codebook: jax.Array, costs: jax.Array | None = None) -> jax.Array:
    """``[t]`` int32 index of the nearest entry for the points ``[d, t]`` of a tile; of equals, the first.

    ``costs``, ``[k]``, are added to the squared distances of each entry; an infinite one rules the entry out.
    """
    k, d = codebook.shape
    unrolled = d <= _UNROLLED_MAX_D
    group = min(k, max(1, min(_UNROLLED_CENTROIDS, _UNROLLED_TERMS // d)) if unrolled else _UNROLLED_CENTROIDS)
    # Of |x - c|^2 only c.x - |c|^2 / 2 depends on c: the largest wins. Padded entries score minus infinity.
    halves = jnp.square(codebook) / 2
    padded = jnp.pad(codebook, ((0, -k % group), (0, 0)))
    half = jnp.pad(halves.sum(1), (0, -k % group), constant_values=jnp.inf)
    halves = jnp.pad(halves, ((0, -k % group), (0, 0)), constant_values=jnp.inf)
    extra = None if costs is None else jnp.pad(costs / 2, (0, -k % group))
    mx = x if metric is None else metric * x

    def compare(g: Any, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        score, index = best
        entries = lax.dynamic_slice_in_dim(padded, g * group, group)
        entry_half = lax.dynamic_slice_in_dim(half, g * group, group)
        entry_halves = lax.dynamic_slice_in_dim(halves, g * group, group)
        if not unrolled:
            dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
            finite = jnp.where(jnp.isinf(entry_half)[:, None], 0, entry_halves)
            lost = entry_half[:, None] if metric is None else dot(finite, metric)
            product = jnp.where(jnp.isinf(entry_half)[:, None], -jnp.inf, dot(entries, mx) - lost)
        for j in range(group):
            if not unrolled:
                s = product[j]
            elif metric is None:
                s = -entry_half[j] + entries[j, 0] * mx[0]
                for c in range(1, d):
                    s = s + entries[j, c] * mx[c]
            else:
                s = entries[j, 0] * mx[0] - entry_halves[j, 0] * metric[0]
                for c in range(1, d):
                    s = s + (entries[j, c] * mx[c] - entry_halves[j, c] * metric[c])
            if extra is not None:
                s = s - lax.dynamic_index_in_dim(extra, g * group + j, keepdims=False)
            better = s > score  # False for the NaN of an infinite half times a metric of zero
            score, index = jnp.where(better, s, score), jnp.where(better, g * group + j, index)
        return score, index

    t = x.shape[1]
    start = (jnp.full(t, -jnp.inf, x.dtype), jnp.zeros(t, jnp.int32))
    return lax.fori_loop(0, padded.shape[0] // group, compare, start)[1]


def table(points: Tiles, codebook: jax.Array) -> jax.Array:
    """``[k, d + 1]``, or ``[k, 2 d]`` for weights of coordinates: sums of weight times point and of weights."""
    k = codebook.shape[0]
    tiles, d, _ = points.x.shape
    width = d + (1 if points.weights is None else points.weights.shape[1])
    # Sums of sums, so that no accumulator sees more than some hundred additions of its kind.
    run = max(1, round(tiles**0.5))

    def add(i: Any, total: jax.Array) -> jax.Array:
        x = _at(points.x, i)
        w = jnp.ones_like(x[:1]) if points.weights is None else _at(points.weights, i)
        index = assign_tile(x, None if points.metric is None else _at(points.metric, i), codebook)
        return total.at[index].add(jnp.concatenate([x * w, w]).T, mode="promise_in_bounds")

    def add_run(r: Any, total: jax.Array) -> jax.Array:
        zero = jnp.zeros((k, width), points.x.dtype)
        return total + lax.fori_loop(r * run, jnp.minimum((r + 1) * run, tiles), add, zero)

    return lax.fori_loop(0, -(-tiles // run), add_run, jnp.zeros((k, width), points.x.dtype))


def nearest_and_error(points: Tiles, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index ``[tiles, t]`` (smallest unsigned type) of the nearest entry, and weighted squared errors ``[tiles]``."""

    def tile(operand: Tiles) -> tuple[jax.Array, jax.Array]:
        index, error = _tile_errors(operand, codebook)
        return index, error.sum()

    return lax.map(tile, points)


def _tile_errors(tile: Tiles, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    index = assign_tile(tile.x, tile.metric, codebook)
    squares = jnp.square(tile.x - codebook[index].T)
    error = (squares if tile.weights is None else squares * tile.weights).sum(0)
    return index.astype(index_dtype(codebook.shape[0])), error


def errors(points: Tiles, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index ``[tiles, t]`` (smallest unsigned type) of the nearest entry, and weighted squared error ``[tiles, t]``."""
    return lax.map(lambda tile: _tile_errors(tile, codebook), points)


def reseed(points: Tiles, codebook: jax.Array, empty: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves the ``empty`` entries to the points of largest weighted error, none to a point that is hit exactly."""
    tiles, _, t = points.x.shape
    error, at = lax.top_k(errors(points, codebook)[1].reshape(-1), min(codebook.shape[0], tiles * t))
    rank = jnp.minimum(jnp.cumsum(empty) - 1, at.size - 1)
    where = at[jnp.maximum(rank, 0)]
    moved = empty & (jnp.cumsum(empty) <= at.size) & (error[jnp.maximum(rank, 0)] > 0)
    return jnp.where(moved[:, None], points.x[where // t, :, where % t], codebook), moved.sum(dtype=jnp.int32)
