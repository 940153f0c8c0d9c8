"""Palettized weights: indices into a codebook of values or blocks that they share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core import blocks
from bqjax.core.leaves.base import Array, CompressedLeaf, Stream, all_finite, index_dtype

__all__ = ["Clustered", "trim_codebook"]


_PIECE = 2**20  # indices that are looked up at a time


def trim_codebook(codebook: Any, indices: Any) -> tuple[Any, Any]:
    """Drops codebook entries that no index points to, and joins equal ones. While tracing, returns both as they are.

    In pieces: NumPy looks things up by indices of 8 bytes, which for a large leaf would be several times its weights.

    Args:
      codebook: ``[k]`` numbers or ``[k, d]`` blocks, in any order.
      indices: integers in ``[0, k)`` of any shape, at least one.

    Returns:
      Codebook ``[k']`` or ``[k', d]`` of the same dtype, the order of entries kept, and indices of the same shape in the smallest
      unsigned type for ``k'``. They stand for the same values; JAX arrays where the codebook is one, else NumPy's.

    Example:
      >>> trim_codebook(np.float32([5, 3, 3, 7]), np.array([2, 0, 1, 2]))
      (array([5., 3.], dtype=float32), array([1, 0, 1, 1], dtype=uint8))
    """
    if isinstance(codebook, jax.core.Tracer) or isinstance(indices, jax.core.Tracer):
        return codebook, indices
    kind = jnp.asarray if isinstance(codebook, jax.Array) else np.asarray
    entries, old = np.asarray(codebook), np.asarray(indices)
    pieces = [slice(start, start + _PIECE) for start in range(0, old.size, _PIECE)]
    in_use = np.zeros(len(entries), bool)
    for piece in pieces:
        in_use[old.reshape(-1)[piece]] = True
    used = np.flatnonzero(in_use)
    # Compared in float64, which every shorter type converts to exactly and NumPy's sorting knows.
    rows = entries[used].astype(np.float64).reshape(used.size, -1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    kept = np.sort(first)
    dtype = index_dtype(kept.size)
    if kept.size == len(entries):
        return kind(codebook), kind(indices).astype(dtype)
    lookup = np.zeros(len(entries), dtype)
    lookup[used] = np.searchsorted(kept, first[inverse.reshape(-1)])
    new = np.empty(old.size, dtype)
    for piece in pieces:
        new[piece] = lookup[old.reshape(-1)[piece]]
    return kind(entries[used[kept]]), kind(new.reshape(old.shape))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["indices", "codebook", "scale", "offset"],
    meta_fields=["shape", "dtype", "axis_order", "group"],
)
@dataclass(frozen=True)
class Clustered(CompressedLeaf):
    """A codebook and an index into it for every block of the weight; ``d = 1`` is scalar weight sharing.

    Attributes:
      indices: ``[n_blocks]``, the smallest unsigned type for ``k`` values, each below ``k``.
      codebook: ``[k, d]`` floating point and finite, or of the leaf's dtype where that is int8 or uint8; int8 or uint8 codes
        where there is a scale.
      shape: shape of the weight.
      dtype: dtype of the weight.
      axis_order: permutation of the weight's axes for the block layout (see :mod:`bqjax.core.blocks`).
      group: leaves naming the same group have the same codebook, which the file then holds once.
      scale, offset: float32 ``[]``, finite; entries are ``scale * (codebook + offset)``. None where they are as they stand.
    """

    indices: Array
    codebook: Array
    shape: tuple[int, ...]
    dtype: np.dtype
    axis_order: tuple[int, ...]
    group: str | None
    scale: Array | None
    offset: Array | None

    def __init__(
        self,
        indices: Array,
        codebook: Array,
        shape: tuple[int, ...],
        dtype: Any,
        axis_order: tuple[int, ...] | None = None,
        group: str | None = None,
        scale: Array | None = None,
        offset: Array | None = None,
    ):
        fields = {
            "indices": indices,
            "codebook": codebook,
            "shape": tuple(shape),
            "dtype": np.dtype(dtype),
            "axis_order": tuple(range(len(shape))) if axis_order is None else tuple(axis_order),
            "group": group,
            "scale": scale,
            "offset": offset,
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @property
    def k(self) -> int:
        """Number of codebook entries."""
        return self.codebook.shape[-2]

    @property
    def d(self) -> int:
        """Weights per block."""
        return self.codebook.shape[-1]

    def entries(self) -> jax.Array:
        """``[k, d]``: the blocks that indices stand for. Traceable."""
        codebook = jnp.asarray(self.codebook)
        if self.scale is None or self.offset is None:
            return codebook
        # In this order no compiler can fuse the two operations, and every program gets the same bits.
        return (codebook.astype(jnp.float32) + jnp.asarray(self.offset)) * jnp.asarray(self.scale)

    def decode(self) -> jax.Array:
        values = self.entries()[jnp.asarray(self.indices)]
        return blocks.from_blocks(values, self.shape, self.axis_order).astype(self.dtype)

    def streams(self) -> tuple[Stream, ...]:
        return (Stream(self.indices, self.k),)

    def table_bits(self) -> int:
        return self.codebook.size * self.codebook.dtype.itemsize * 8 + (0 if self.scale is None else 64)

    def validate(self, name: str = "leaf") -> None:
        indices, codebook = np.asarray(self.indices), np.asarray(self.codebook)
        integers = codebook.dtype == self.dtype and self.dtype in (np.int8, np.uint8)
        if self.scale is not None or self.offset is not None:
            for what, x in (("scale", self.scale), ("offset", self.offset)):
                if x is None or np.shape(x) != () or np.asarray(x).dtype != np.float32 or not np.isfinite(x):
                    raise ValueError(f"{name}: the codebook's {what} must be a finite float32 number, got {x!r}")
            if codebook.dtype not in (np.int8, np.uint8) or not jnp.issubdtype(self.dtype, jnp.floating):
                raise ValueError(
                    f"{name}: a codebook with a scale holds int8 or uint8 codes of floating-point weights, got {codebook.dtype} "
                    f"codes of {self.dtype} weights"
                )
            integers = True
        if codebook.ndim != 2 or 0 in codebook.shape or not (integers or jnp.issubdtype(codebook.dtype, jnp.floating)):
            raise ValueError(
                f"{name}: the codebook must be a non-empty floating-point [k, d] array, got {codebook.dtype} {codebook.shape}"
            )
        if not all_finite(codebook):
            raise ValueError(f"{name}: the codebook holds NaN or infinite values")
        if sorted(self.axis_order) != list(range(len(self.shape))):
            raise ValueError(f"{name}: axis_order {self.axis_order} is not a permutation of the axes of {self.shape}")
        expected = (blocks.n_blocks(self.shape, self.axis_order, self.d),)
        if indices.shape != expected or indices.dtype != index_dtype(self.k):
            raise ValueError(
                f"{name}: indices must be {index_dtype(self.k)} of shape {expected} for {self.shape} in blocks of {self.d}, "
                f"got {indices.dtype} {indices.shape}"
            )
        if indices.size and int(indices.max()) >= self.k:
            raise ValueError(f"{name}: index {int(indices.max())} points beyond the {self.k} codebook entries")
