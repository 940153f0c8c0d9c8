"""Entropy-constrained scalar and vector quantization: a codebook against distortion and the bits of its entropy-coded indices.

Points ``x_i`` of ``d`` coordinates with importance ``h_i`` go to entries ``v_j``, so that the rate-distortion Lagrangian

    ``sum_i sum_c h_ic / 2 (x_ic - v_jc)^2 + lmbda * bits_j``,   ``bits_j = -log2(share of points at j)``,   ``j = j(i)``,

is small. With ``d = 1`` (ECSQ) points are single weights; with ``d > 1`` (ECVQ) a block of weights shares one index, so that a few
bits are spent on several weights at once, and neighbours that are small together cost next to nothing together.

References:
  Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Transactions on ASSP 37(1), 1989.
  Choi, El-Khamy, Lee, "Towards the limit of network quantization", ICLR 2017 (arXiv 1612.01543).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.blocks import block_mask, float_blocks
from bqjax.core.leaves import Clustered, index_dtype, trim_codebook
from bqjax.kmeans.segments import segment_means
from bqjax.kmeans.tiles import assign_tile, tiled

__all__ = ["ecvq_refine", "ecvq_solve", "ideal_code_lengths"]


def ideal_code_lengths(counts: jax.Array, *, unused: float = 0.0) -> jax.Array:
    """Bits of each index in an ideal entropy code, ``-log2(count / total)``, float32 ``[k]``. Traceable.

    Args:
      counts: ``[k]``, how often each index occurs, not all zero.
      unused: how often an index that does not occur counts as occurring; 0 gives it infinitely many bits.

    Example:
      >>> ideal_code_lengths(jnp.float32([2, 1, 0, 1])).tolist()
      [1.0, 2.0, inf, 2.0]
    """
    return -jnp.log2(jnp.maximum(counts, unused) / counts.sum())


class _Steps(NamedTuple):
    """The two halves of an iteration.

    Attributes:
      refit: ``(codebook, indices) -> (codebook, counts)``: the weighted means of an entry's points, and how many it has. An entry
        without points stays.
      assign: ``(codebook, costs) -> indices``: the entry of least weighted squared distance over 2 plus cost.
    """

    refit: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    assign: Callable[[jax.Array, jax.Array], jax.Array]


def _scalar_steps(x: jax.Array, h: jax.Array, k: int) -> _Steps:
    """Of single weights ``[n]``: means that are careful about rounding, and one fused pass over the weights."""

    def refit(codebook: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        counts = jnp.stack([jnp.sum(indices == j, dtype=jnp.int32) for j in range(k)]).astype(x.dtype)
        return jnp.where(counts > 0, segment_means(x, indices, k, h), codebook), counts

    def assign(codebook: jax.Array, costs: jax.Array) -> jax.Array:
        # A running minimum over the entries: the [n, k] matrix of costs never exists.
        best, least = jnp.zeros(x.shape, index_dtype(k)), jnp.full_like(x, jnp.inf)
        for j in range(k):
            cost = h / 2 * jnp.square(x - codebook[j]) + costs[j]
            best, least = jnp.where(cost < least, j, best).astype(best.dtype), jnp.minimum(cost, least)
        return best

    return _Steps(refit, assign)


def _vector_steps(x: jax.Array, h: jax.Array, k: int) -> _Steps:
    """Of points ``[n, d]``, in tiles (see :mod:`bqjax.kmeans.tiles`)."""
    n, d = x.shape
    xs, hs = tiled(x), tiled(h)
    tiles, _, size = xs.shape
    counted = (lax.iota(jnp.int32, tiles * size) < n).astype(x.dtype).reshape(tiles, 1, size)

    def refit(codebook: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(total: jax.Array, tile: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            xt, ht, index, real = tile
            terms = jnp.concatenate([xt * ht, ht, real]).T
            # Tile by tile, so that no accumulator sees more than a tile's points.
            return total + jnp.zeros_like(total).at[index].add(terms, mode="promise_in_bounds"), None

        index = jnp.pad(indices, (0, tiles * size - n)).reshape(tiles, size)
        total, _ = lax.scan(add, jnp.zeros((k, 2 * d + 1), x.dtype), (xs, hs, index, counted))
        sums, mass, counts = total[:, :d], total[:, d:-1], total[:, -1]
        return jnp.where(mass > 0, sums / jnp.where(mass > 0, mass, 1.0), codebook), counts

    def assign(codebook: jax.Array, costs: jax.Array) -> jax.Array:
        # In squared distance, which has no half.
        index = lax.map(lambda tile: assign_tile(tile[0], tile[1], codebook, 2 * costs).astype(index_dtype(k)), (xs, hs))
        return index.reshape(-1)[:n]

    return _Steps(refit, assign)


@jax.jit
def ecvq_solve(
    points: jax.Array,
    importance: jax.Array,
    codebook: jax.Array,
    indices: jax.Array,
    lmbda: Any,
    *,
    floor: Any = 0.0,
    iterations: Any = 20,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Entropy-constrained quantization by alternation: entries, the bits of an index, the cheapest entry of each point.

    Each of the three lowers the Lagrangian of :mod:`bqjax.kmeans.ecvq`. At lmbda 0 this is k-means from ``indices``. Memory is
    linear in the points: no array of ``n * k`` entries exists. Traceable; nothing is checked.

    Args:
      points: ``[n, d]`` floating point, or ``[n]`` for single weights.
      importance: of the same shape and dtype, finite and not negative.
      codebook: ``[k, d]`` or ``[k]``; only entries that no point has at first are taken from it.
      indices: ``[n]`` integers below ``k``, the assignment to start from.
      lmbda: Lagrangian weight of a bit, in units of ``importance * points^2``.
      floor: share of the mean importance that is added to that of each coordinate.
      iterations: of the alternation; may be traced.
      mask: ``[n, d]`` booleans, False for padding, which counts nowhere; no point is all padding. None: all real.

    Returns:
      Codebook of the same shape, in which entries that no point chose stay, and indices ``[n]`` in the smallest unsigned type.
    """
    k = codebook.shape[0]
    # In units of the mean importance, so that no product underflows.
    scale = jnp.mean(importance, where=mask)
    scale = jnp.where(scale > 0, scale, 1.0)
    h = importance / scale + floor
    h = h if mask is None else jnp.where(mask, h, 0.0)
    bit = jnp.asarray(lmbda, points.dtype) / scale
    steps = _scalar_steps(points.reshape(-1), h.reshape(-1), k) if points.size == len(points) else _vector_steps(points, h, k)

    def iterate(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        codebook, counts = steps.refit(*state)
        # An empty entry costs infinitely much; at lmbda 0 that would be 0 * inf.
        costs = jnp.where(counts > 0, bit * ideal_code_lengths(counts), jnp.inf)
        return codebook, steps.assign(codebook, costs)

    first = codebook.reshape(-1) if codebook.size == k else codebook
    state = lax.fori_loop(0, iterations, iterate, (first, indices.astype(index_dtype(k))))
    return steps.refit(*state)[0].reshape(codebook.shape), state[1]


def ecvq_refine(
    weight: Any, importance: Any, start: Clustered, lmbda: float, *, floor: float = 0.02, iterations: int = 20
) -> Clustered:
    """Entropy-constrained vector quantization of one leaf, from a clustered leaf to start with (:func:`ecvq_solve`).

    Args:
      weight: the leaf.
      importance: of the leaf's shape, non-negative and finite, not all zero.
      start: the leaf in blocks, see :func:`bqjax.methods.gwk.cluster.gwk_cluster`; gives block size, layout and first codebook.
      lmbda: Lagrangian weight of a bit of indices, in units of ``importance * weight^2``.
      floor: share of the mean importance that is added to that of each weight.
      iterations: of the alternation.

    Returns:
      The leaf with the new codebook, of the entries in use, and indices.

    Raises:
      ValueError: shapes that differ; negative or non-finite importance; a negative lmbda or floor.
    """
    for what, value in (("lmbda", lmbda), ("floor", floor)):
        if not (value >= 0 and np.isfinite(value)):
            raise ValueError(f"{what} must be finite and not negative, got {value}")
    shapes = {"weight": np.shape(weight), "importance": np.shape(importance)}
    for what, shape in shapes.items():
        if shape != start.shape:
            raise ValueError(f"{what} must have the leaf's shape {start.shape}, got {shape}")
    if not (bool(jnp.isfinite(importance).all()) and bool((jnp.asarray(importance) >= 0).all())):
        raise ValueError("importance must be finite and not negative")
    real = block_mask(start.shape, start.axis_order, start.d)
    codebook, indices = ecvq_solve(
        float_blocks(jnp.asarray(weight), start.axis_order, start.d),
        float_blocks(jnp.asarray(importance), start.axis_order, start.d),
        jnp.asarray(start.codebook, jnp.float32),
        jnp.asarray(start.indices),
        lmbda,
        floor=floor,
        iterations=iterations,
        mask=None if real.all() else jnp.asarray(real),
    )
    codebook, indices = trim_codebook(codebook.astype(start.codebook.dtype), indices)
    return Clustered(indices, codebook, start.shape, start.dtype, start.axis_order, start.group)
