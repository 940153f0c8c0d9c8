"""Blocks chosen anew while weights train: coordinate descent under the curvature from where the indices are. Traceable.

In a training loop weights move a little in every step. Each block keeps its entry unless another is cheaper by what it does to the
outputs and by its bits, while all other blocks stay: indices don't jump back and forth as they would by error feedback, where an
early block decides for all later ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace as with_fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import Clustered
from bqjax.core.map_leaves import by_shape
from bqjax.methods.rate_distortion.block_feedback import BlockStats, descended_blocks, to_columns
from bqjax.methods.rate_distortion.block_solver import PreparedBlocks
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.leaf_curvature import Layout

__all__ = ["BlockRefresh", "block_refreshes", "refreshed_indices"]


class BlockRefresh(NamedTuple):
    """What choosing the blocks of a leaf anew needs, a pytree.

    Attributes:
      layout: of the leaf, static.
      numbers: ``[G, rows, B]`` int32, the file's number of each block, in the order of the statistics.
      stats: of the leaf, without the factor of error feedback.
    """

    layout: Layout
    numbers: jax.Array
    stats: BlockStats


def block_refreshes(prepared: PreparedBlocks, curvature: Curvature) -> dict[str, BlockRefresh]:
    """For each leaf of :func:`~bqjax.methods.rate_distortion.block_solver.prepare_blocks`, by name."""
    found = {}
    for group in prepared.groups:
        for name, leaf in group.leaves.items():
            order = np.asarray(leaf.stats.order)
            numbers = np.take_along_axis(group.layouts[name].numbers, order[:, None, :], axis=2)
            lean = leaf.stats._replace(factor=None)
            found[name] = BlockRefresh(curvature[name].layout, jnp.asarray(numbers, jnp.int32), lean)
    return found


def refreshed_indices(
    weights: Mapping[str, Any],
    leaves: Mapping[str, Clustered],
    refreshes: Mapping[str, BlockRefresh],
    lengths: Mapping[str, jax.Array],
    lmbda: Any,
    *,
    sweeps: int = 1,
) -> dict[str, Clustered]:
    """The leaves with new indices. Traceable.

    Args:
      weights: what the leaves stand for, by name.
      leaves: whose indices to go on from, and whose codebooks to take.
      refreshes: from :func:`block_refreshes`.
      lengths: ``[k]`` by name, bits of each index of the leaf.
      lmbda: of a bit, in the units of half the squared change of the outputs of an example.
      sweeps: over all blocks.

    Returns:
      Leaves in which distortion plus ``lmbda`` times the bits of indices is not above what it was.
    """
    arguments = {
        name: (
            jnp.asarray(weights[name], jnp.float32),
            jnp.asarray(leaf.indices),
            leaf.entries().astype(jnp.float32),
            jnp.asarray(lengths[name]),
            jnp.asarray(lmbda, jnp.float32),
            refreshes[name],
        )
        for name, leaf in leaves.items()
    }
    found = by_shape(_refresher(sweeps), arguments)
    return {name: with_fields(leaf, indices=found[name].astype(leaf.indices.dtype)) for name, leaf in leaves.items()}


def _refreshed(
    weight: jax.Array,
    indices: jax.Array,
    codebook: jax.Array,
    bits: jax.Array,
    lmbda: jax.Array,
    refresh: BlockRefresh,
    *,
    sweeps: int,
) -> jax.Array:
    columns = to_columns(refresh.layout.to_rows(weight), refresh.stats)
    chosen = indices.astype(jnp.int32)[refresh.numbers]
    new = descended_blocks(columns, chosen, refresh.stats, codebook, bits, lmbda, sweeps=sweeps)
    return jnp.zeros(len(indices), jnp.int32).at[refresh.numbers.reshape(-1)].set(new.reshape(-1))


@functools.lru_cache
def _refresher(sweeps: int) -> Callable[..., jax.Array]:
    """One function object for each number of sweeps, as compiled code is kept by it."""
    return functools.partial(_refreshed, sweeps=sweeps)
