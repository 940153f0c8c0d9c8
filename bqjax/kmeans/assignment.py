"""The nearest codebook entry of every block, and weighted sums of the blocks of an entry."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bqjax.core.leaves import index_dtype
from bqjax.kmeans.prepare import check_mask, matrix, moved, prepared, tiled_points
from bqjax.kmeans.tiles import assign_tile

__all__ = ["nearest_block", "weighted_sums"]


def nearest_block(points: Any, codebook: Any, *, mask: Any = None, costs: Any = None) -> jax.Array:
    """Nearest-neighbour assignment by squared distance: the index of every point's entry; of equals, the first. Traceable.

    Args:
      points: ``[n, d]`` floating point.
      codebook: ``[k, d]`` floating point, in any order.
      mask: ``[n, d]`` booleans, False for coordinates that do not count.
      costs: ``[k]``, added to the squared distances of each entry.

    Returns:
      ``[n]``, the smallest unsigned type for ``k``.

    Raises:
      ValueError: arguments of unfit shape or type, NaN or infinite entries (concrete ones only).

    Example:
      >>> import numpy as np
      >>> nearest_block(np.float32([[0, 1], [5, 5]]), np.float32([[4, 4], [0, 0]])).tolist()
      [1, 0]
    """
    x, entries = matrix(points, "points"), matrix(codebook, "codebook")
    if entries.shape[1] != x.shape[1]:
        raise ValueError(f"points have {x.shape[1]} coordinates, the codebook's entries {entries.shape[1]}")
    if costs is not None and jnp.shape(costs) != entries.shape[:1]:
        raise ValueError(f"there are {entries.shape[0]} entries, and costs of shape {jnp.shape(costs)}")
    return _nearest_block(x, entries, check_mask(mask, x), None if costs is None else jnp.asarray(costs, jnp.float32))


@jax.jit
def _nearest_block(x: jax.Array, codebook: jax.Array, mask: jax.Array | None, costs: jax.Array | None) -> jax.Array:
    points, centre, scale = prepared(x, None, mask)
    tiles = tiled_points(points, lambda x: moved(x, mask, centre, scale))
    entries = (codebook - centre) * scale
    costs = None if costs is None else costs * scale * scale
    indices = lax.map(lambda t: assign_tile(t.x, t.metric, entries, costs).astype(index_dtype(codebook.shape[0])), tiles)
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
