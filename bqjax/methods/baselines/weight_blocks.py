"""Blocks of weights for k-means: how leaves are cut into them, clustered, and made leaves again.

Blocks of pruned weights are clustered by the weights that are left: zeros count nowhere, and blocks of nothing but zeros have an
entry of their own. Zeros within other blocks take a mask over the leaf (:class:`bqjax.core.leaves.Masked`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import leaf_blocks, n_blocks, output_first
from bqjax.core.leaves import Clustered, index_dtype, trim_codebook
from bqjax.core.tree import check_finite
from bqjax.kmeans.assignment import nearest_block
from bqjax.kmeans.fixed_levels import pruned
from bqjax.kmeans.vector import VectorKMeans, kmeans_vector

__all__ = [
    "PrunedBlocks",
    "block_parts",
    "blocks_in_place",
    "check_blocks",
    "cluster",
    "clustered_blocks",
    "output_order",
    "pruned_blocks",
    "stored",
]

# Outputs of a dense layer, between which a row of its blocks is a tile of k-means of a good size.
_COLUMNS = 256, 2**15


def check_blocks(name: str, leaf: Any, k: int, d: int) -> None:
    """Raises ``ValueError`` where a leaf cannot be cut into blocks of ``d`` for ``k`` entries; the message names what would fit."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"leaf {name!r} is of integers, {leaf.dtype}: blocks are of floats; skip it, Rule({name!r}, skip=True)")
    check_finite(name, leaf)
    row = math.prod(np.shape(leaf)[a] for a in output_first(leaf.ndim)[1:])
    if d > max(row, 1):
        raise ValueError(
            f"leaf {name!r} of shape {np.shape(leaf)} has rows of {row} weights, fewer than a block of {d}: give it d of at most "
            f"{row} by a rule, or skip it, Rule({name!r}, skip=True)"
        )
    blocks = n_blocks(np.shape(leaf), output_first(leaf.ndim), d)
    if k > blocks:
        raise ValueError(
            f"leaf {name!r} has {blocks} blocks of {d}, fewer than the {k} codebook entries: give it k of at most {blocks} "
            f"by a rule, or skip it, Rule({name!r}, skip=True)"
        )


def block_parts(name: str, leaf: Any, k: int, d: int) -> tuple[jax.Array, jax.Array | None]:
    """Blocks ``[n, d]`` of a leaf in float32, and which of their entries are real where not all are; errors of the above."""
    check_blocks(name, leaf, k, d)
    x, real = leaf_blocks(name, leaf, d)
    return x, None if real.all() else jnp.asarray(real)


def cluster(
    x: jax.Array,
    mask: jax.Array | None,
    k: int,
    key: jax.Array,
    iterations: int,
    start: jax.Array | None = None,
    sampling: bool = True,
) -> VectorKMeans:
    """k-means of blocks ``[n, d]`` that all count the same."""
    return kmeans_vector(x, k, key=key, mask=mask, start=start, iterations=iterations, sampling=sampling)


def blocks_in_place(shape: Sequence[int], d: int) -> bool:
    """Whether the blocks of a leaf can be clustered where they lie: those of dense layers of many outputs."""
    return len(shape) == 2 and d > 1 and not shape[0] % d and _COLUMNS[0] <= shape[1] <= _COLUMNS[1]


def output_order(indices: jax.Array) -> jax.Array:
    """Indices ``[rows, columns]`` of blocks in place in the order of :func:`bqjax.core.blocks.output_first`, ``[n]``."""
    return indices.T.reshape(-1)


def stored(
    x: jax.Array, mask: jax.Array | None, codebook: jax.Array, indices: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Codebook and indices as the leaf holds them: where rounding moves entries, blocks go to the nearest of those."""
    rounded = codebook.astype(dtype)
    if rounded.dtype != codebook.dtype:
        indices = nearest_block(x, rounded.astype(jnp.float32), mask=mask)
    return rounded, indices


def clustered_blocks(leaf: Any, codebook: jax.Array, indices: jax.Array) -> Clustered:
    """The leaf of some blocks, its codebook cut to the entries in use."""
    codebook, indices = trim_codebook(codebook, indices)
    indices = indices.astype(index_dtype(codebook.shape[0]))
    return Clustered(indices, codebook, leaf.shape, leaf.dtype, output_first(leaf.ndim))


class PrunedBlocks(NamedTuple):
    """The blocks of a leaf of pruned weights.

    Attributes:
      x: ``[m, d]`` float32, the blocks in which any weight is left.
      mask: ``[m, d]``, which of their weights are left.
      k: entries for them.
      held: ``[n]`` booleans, which of all blocks they are.
      kept: booleans of the leaf's shape, which weights are left.
    """

    x: jax.Array
    mask: jax.Array
    k: int
    held: np.ndarray
    kept: np.ndarray

    def whole(self, codebook: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Codebook and indices of all blocks, from those of ``x``: blocks of zeros have an entry of zeros, if there is room."""
        if self.held.all():
            return codebook, indices
        spare = int(codebook.shape[0] <= self.k and self.k > 1)
        if spare:
            codebook = jnp.concatenate([jnp.zeros_like(codebook[:1]), codebook])
        every = np.zeros(self.held.size, index_dtype(codebook.shape[0]))
        every[self.held] = np.asarray(indices).astype(every.dtype) + spare
        return codebook, jnp.asarray(every)


def pruned_blocks(name: str, leaf: Any, k: int, d: int) -> PrunedBlocks | None:
    """The blocks of a leaf of which at least 5 % of the weights are zero; None of another, and while tracing.

    Raises:
      ValueError: as :func:`check_blocks`.
    """
    check_blocks(name, leaf, k, d)
    if (kept := pruned(leaf)) is None:
        return None
    x, _ = leaf_blocks(name, leaf, d)
    mask = np.asarray(x) != 0  # which padding is not either
    held = mask.any(1)
    m = int(held.sum())
    k = min(k if m == held.size or k == 1 else k - 1, m)
    if m < held.size:
        x, mask = x[held], mask[held]
    return PrunedBlocks(x, jnp.asarray(mask), k, held, kept)
