"""Blocks of weights against the cost of their storage: entropy-constrained vector quantization of one leaf.

:mod:`bqjax.methods.bins.ecsq` weighs a weight's displacement against what its index costs; here a block of ``d`` weights shares one
index, so that a few bits are spent on several weights at once, and neighbours that are small together cost next to
nothing together.

References:
  Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Transactions on ASSP 37(1), 1989.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import block_mask, to_blocks
from bqjax.core.leaves import Clustered, index_dtype

__all__ = ["constrained_blocks", "trim_blocks"]

_TILE_ENTRIES = 2**22  # of the costs that exist at one time


def trim_blocks(codebook: Any, indices: Any) -> tuple[np.ndarray, np.ndarray]:
    """Drops codebook rows that no index points to. Not traceable.

    >>> trim_blocks(np.float32([[1, 2], [3, 4], [5, 6]]), np.array([2, 0, 2]))[1].tolist()
    [1, 0, 1]
    """
    codebook, indices = np.asarray(codebook), np.asarray(indices)
    used, inverse = np.unique(indices, return_inverse=True)
    return codebook[used], inverse.reshape(indices.shape).astype(index_dtype(len(used)))


def constrained_blocks(
    weight: Any, importance: Any, start: Clustered, lmbda: float, *, floor: float = 0.02, iterations: int = 20
) -> Clustered:
    """Alternates between a leaf's codebook, the cost of an index, and each block's cheapest entry.

    With ``h`` the importance of each weight, a block ``w`` goes to the entry ``c_j`` of least

        ``sum_i h_i / 2 (w_i - c_ji)^2 + lmbda * bits_j``,   ``bits_j = -log2(share of blocks at j)``,

    and ``c_j`` is the mean of its blocks, weighted by ``h`` coordinate by coordinate. Each of the three steps lowers their sum.

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
    codebook, indices = _alternate(
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(importance, jnp.float32),
        jnp.asarray(real),
        jnp.asarray(start.codebook, jnp.float32),
        jnp.asarray(start.indices).astype(jnp.int32),
        lmbda,
        floor,
        tuple(start.axis_order),
        iterations,
    )
    values, trimmed = trim_blocks(codebook, indices)
    return Clustered(trimmed, values.astype(start.codebook.dtype), start.shape, start.dtype, start.axis_order, start.group)


@partial(jax.jit, static_argnames=("order", "iterations"))
def _alternate(
    weight: jax.Array,
    importance: jax.Array,
    real: jax.Array,
    codebook: jax.Array,
    first: jax.Array,
    lmbda: Any,
    floor: Any,
    order: tuple[int, ...],
    iterations: int,
) -> tuple[jax.Array, jax.Array]:
    k, d = codebook.shape
    x, h = to_blocks(weight, order, d), to_blocks(importance, order, d)
    n = x.shape[0]
    # In units of the leaf's mean importance, so that no product underflows. Padding weighs nothing.
    scale = jnp.mean(importance)
    scale = jnp.where(scale > 0, scale, 1.0)
    h = jnp.where(real, h / scale + floor, 0.0)
    bit = jnp.asarray(lmbda, jnp.float32) / scale
    tile = max(1, min(n, _TILE_ENTRIES // k))
    tiles = -(-n // tile)
    pad = ((0, tiles * tile - n), (0, 0))
    xs, hs = (jnp.pad(a, pad).reshape(tiles, tile, d) for a in (x, h))
    counted = (jnp.arange(tiles * tile) < n).reshape(tiles, tile)

    def tables(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Weighted sums, weights and counts of every entry, in tiles: the one-hot matrix of all never exists."""

        def one(total: Any, part: Any) -> tuple[Any, None]:
            xt, ht, it, ct = part
            hot = (it[:, None] == jnp.arange(k)[None]) & ct[:, None]
            hot = hot.astype(jnp.float32)
            new = hot.T @ (xt * ht), hot.T @ ht, hot.sum(0)
            return jax.tree.map(jnp.add, total, new), None

        zero = jnp.zeros((k, d)), jnp.zeros((k, d)), jnp.zeros(k)
        return jax.lax.scan(one, zero, (xs, hs, index.reshape(tiles, tile), counted))[0]

    def means(codebook: jax.Array, sums: jax.Array, mass: jax.Array) -> jax.Array:
        return jnp.where(mass > 0, sums / jnp.where(mass > 0, mass, 1.0), codebook)

    def step(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        codebook, index = state
        sums, mass, counts = tables(index)
        codebook = means(codebook, sums, mass)
        share = counts / n
        # An empty entry costs infinitely much; at lmbda 0 that would be 0 * inf.
        cost = jnp.where(share > 0, bit * -jnp.log2(jnp.where(share > 0, share, 1.0)), jnp.inf)

        def nearest(part: Any) -> jax.Array:
            xt, ht = part
            # sum h/2 (x - c)^2 without its part that all entries share
            inner = ht @ jnp.square(codebook).T / 2 - (ht * xt) @ codebook.T
            return jnp.argmin(inner + cost[None], axis=1).astype(jnp.int32)

        return codebook, jax.lax.map(nearest, (xs, hs)).reshape(-1)

    index = jnp.pad(first, (0, tiles * tile - n))
    codebook, index = jax.lax.fori_loop(0, iterations, step, (codebook, index))
    sums, mass, _ = tables(index)
    return means(codebook, sums, mass), index[:n]
