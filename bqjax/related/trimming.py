"""Codebooks without entries that nothing points to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.leaves import index_dtype, trim_codebook

__all__ = ["in_use"]

_PIECE = 2**20


def in_use(codebook: Any, indices: Any) -> tuple[jax.Array, jax.Array]:
    """Drops codebook entries that no index points to and joins equal ones; while tracing, returns both as they are.

    :func:`bqjax.leaves.trim_codebook` for entries of ``d`` numbers, and in pieces: NumPy looks things up by indices of 8 bytes,
    which for a large leaf would be several times its weights.

    Args:
      codebook: ``[k, d]``.
      indices: ``[n]`` in ``[0, k)``.

    Returns:
      Codebook ``[k', d]``, the order of entries kept, and indices in the smallest unsigned type for ``k'``.

    Example:
      >>> codebook, indices = in_use(np.float32([[5], [3], [3], [7]]), np.array([2, 0, 1, 2]))
      >>> codebook.tolist(), indices.tolist()
      ([[5.0], [3.0]], [1, 0, 1, 1])
    """
    if isinstance(codebook, jax.core.Tracer) or isinstance(indices, jax.core.Tracer):
        return codebook, indices
    entries, old = np.asarray(codebook), np.asarray(indices)
    pieces = [slice(start, start + _PIECE) for start in range(0, old.size, _PIECE)]
    used = np.zeros(len(entries), bool)
    for piece in pieces:
        used[old[piece]] = True
    # Entries by the number of the first that equals them. In float64, which every shorter type converts to exactly.
    _, first, inverse = np.unique(entries.astype(np.float64), axis=0, return_index=True, return_inverse=True)
    if used.all() and first.size == len(entries):
        return jnp.asarray(codebook), jnp.asarray(indices).astype(index_dtype(len(entries)))
    numbers, table = trim_codebook(first[inverse.reshape(-1)].astype(np.float64), np.flatnonzero(used))
    lookup = np.zeros(len(entries), table.dtype)
    lookup[used] = table
    new = np.empty(old.shape, table.dtype)
    for piece in pieces:
        new[piece] = lookup[old[piece]]
    return jnp.asarray(entries[numbers.astype(np.int64)]), jnp.asarray(new)
