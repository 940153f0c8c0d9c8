"""Codebooks of blocks under the curvature: where they start, and least squares for given indices.

For given indices the distortion ``sum g_r / 2 (w_r - S_r c)^T H (w_r - S_r c)`` is quadratic in the codebook ``c [k, d]``, whose
entries are coupled wherever two blocks of a row meet in ``H``. It is minimised by conjugate gradients, which never build that
matrix.

References:
  Hestenes, Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
  Chou, Lookabaugh, Gray 1989: see :mod:`bqjax.kmeans.ecvq`, which gives the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bqjax.kmeans.ecvq import ecvq_solve
from bqjax.kmeans.vector import kmeans_vector
from bqjax.methods.rate_distortion.block_feedback import BlockStats, block_errors

__all__ = ["BlockLeaf", "refitted_codebook", "start_codebook"]


class BlockLeaf(NamedTuple):
    """A leaf that shares a codebook.

    Attributes:
      columns: ``[G, rows, D]`` weights in the order of the statistics.
      stats: of the leaf.
    """

    columns: jax.Array
    stats: BlockStats


@jax.jit
def _points(leaf: BlockLeaf) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blocks ``[n, d]``, their importance by coordinate, and which coordinates are real."""
    stats = leaf.stats
    d = stats.whitener.shape[-1]
    own = jnp.diagonal(stats.moment, axis1=1, axis2=2)
    importance = stats.importance[:, :, None] * own[:, None, :]
    real = jnp.broadcast_to(stats.real[:, None, :], importance.shape)
    return leaf.columns.reshape(-1, d), jnp.where(real, importance, 0.0).reshape(-1, d), real.reshape(-1, d)


def start_codebook(
    leaves: Sequence[BlockLeaf], k: int, lmbda: float, *, key: jax.Array, iterations: int = 20
) -> tuple[jax.Array, list[jax.Array]]:
    """k-means and entropy-constrained vector quantization of the leaves' blocks, by the diagonal of their curvature.

    Args:
      leaves: that share the codebook.
      k: entries; at most as many as blocks.
      lmbda: of a bit.
      key: of k-means's seeds.
      iterations: of each of the two.

    Returns:
      ``[k, d]`` float32, and the indices ``[G, rows, B]`` of each leaf.
    """
    parts = [_points(leaf) for leaf in leaves]
    x, h, real = (jnp.concatenate(each) for each in zip(*parts, strict=True))
    mask = None if bool(real.all()) else real
    found = kmeans_vector(x, k, h, key=key, mask=mask, iterations=iterations)
    codebook, indices = ecvq_solve(x, h, found.codebook, found.indices, lmbda, floor=0.02, iterations=iterations, mask=mask)
    split, start = [], 0
    for leaf in leaves:
        groups, rows, _ = leaf.columns.shape
        blocks = leaf.stats.order.shape[1]
        split.append(indices[start : start + groups * rows * blocks].reshape(groups, rows, blocks).astype(jnp.int32))
        start += groups * rows * blocks
    return codebook, split


@partial(jax.jit, static_argnames="steps")
def refitted_codebook(
    leaves: tuple[BlockLeaf, ...], chosen: tuple[jax.Array, ...], codebook: jax.Array, *, steps: int = 30
) -> jax.Array:
    """The codebook of least distortion for given indices, by conjugate gradients from a given one. Pure and traceable.

    Args:
      leaves: that share the codebook.
      chosen: ``[G, rows, B]`` indices of each.
      codebook: ``[k, d]``; entries that nothing uses stay.
      steps: of conjugate gradients; the distortion falls with each.
    """

    def loss(codebook: jax.Array) -> jax.Array:
        return sum(
            (block_errors(leaf.columns, index, codebook, leaf.stats) for leaf, index in zip(leaves, chosen, strict=True)),
            jnp.zeros(()),
        )

    # Of a quadratic form the gradient is affine: its slope along a direction is the matrix times that direction.
    gradient = jax.grad(loss)

    def curved(direction: jax.Array) -> jax.Array:
        return jax.jvp(gradient, (codebook,), (direction,))[1]

    scale = _diagonal(leaves, chosen, codebook)
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1.0), 0.0)
    moved, _ = jax.scipy.sparse.linalg.cg(curved, -gradient(codebook), maxiter=steps, M=lambda x: x * inverse)
    return codebook + moved


def _diagonal(leaves: Sequence[BlockLeaf], chosen: Sequence[jax.Array], codebook: jax.Array) -> jax.Array:
    """Diagonal of the quadratic form, but for blocks of one row with the same entry: ``[k, d]``."""
    total: Any = jnp.zeros_like(codebook)
    for leaf, index in zip(leaves, chosen, strict=True):
        _, importance, _ = _points(leaf)
        total = total.at[index.reshape(-1)].add(importance)
    return total
