"""Pruned weights: any compressed leaf, and a mask of those of its weights that are exactly zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import output_first
from bqjax.core.leaves.base import CompressedLeaf, Stream, is_compressed
from bqjax.core.leaves.clustered import Clustered

__all__ = ["Masked", "mask_zeros"]

_BLOCK = 4  # weights of one symbol of the mask: of 2:4 sparsity there are six, 0.65 bits a weight


@partial(jax.tree_util.register_dataclass, data_fields=["leaf", "kept"], meta_fields=[])
@dataclass(frozen=True)
class Masked(CompressedLeaf):
    """A compressed leaf of which some weights are exactly zero: ``where(kept, leaf, 0)``.

    Codebooks of blocks, sums and products have no zero for single weights; the mask keeps the zeros of pruned weights.

    Attributes:
      leaf: any other compressed leaf of floating point.
      kept: which weights are those of ``leaf``: a clustered leaf of the same shape, of dtype uint8, 0 or 1, in no group.
    """

    leaf: CompressedLeaf
    kept: Clustered

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.leaf.dtype

    @property
    def group(self) -> str | None:
        """The group whose codebook the leaf has."""
        return getattr(self.leaf, "group", None)

    def decode(self) -> jax.Array:
        values = self.leaf.decode()
        return jnp.where(self.kept.decode() != 0, values, jnp.zeros((), values.dtype))

    def streams(self) -> tuple[Stream, ...]:
        return *self.leaf.streams(), *self.kept.streams()

    def table_bits(self) -> int:
        return self.leaf.table_bits() + self.kept.table_bits()

    def validate(self, name: str = "leaf") -> None:
        if not is_compressed(self.leaf) or isinstance(self.leaf, Masked) or not isinstance(self.kept, Clustered):
            raise ValueError(
                f"{name}: a mask is a clustered leaf over another compressed leaf, got {type(self.kept).__name__} over "
                f"{type(self.leaf).__name__}"
            )
        self.leaf.validate(name)
        self.kept.validate(f"{name}, mask")
        if not jnp.issubdtype(self.leaf.dtype, jnp.floating):
            raise ValueError(f"{name}: masked weights are of floating point, got {self.leaf.dtype}")
        if tuple(self.kept.shape) != tuple(self.leaf.shape) or self.kept.dtype != np.uint8 or self.kept.group is not None:
            raise ValueError(
                f"{name}: the mask must be uint8 of shape {tuple(self.leaf.shape)} in no group, got {self.kept.dtype} "
                f"{tuple(self.kept.shape)}, group {self.kept.group!r}"
            )
        if self.kept.scale is not None or int(np.max(self.kept.codebook, initial=0)) > 1:
            raise ValueError(f"{name}: the mask's codebook holds {int(np.max(self.kept.codebook))}, which is neither 0 nor 1")


def mask_zeros(leaf: CompressedLeaf, kept: np.ndarray) -> CompressedLeaf:
    """A leaf whose weights are zero where ``kept`` is False: the leaf itself where they are zero already.

    Args:
      leaf: concrete.
      kept: booleans of its shape.

    Example:
      >>> signs = Clustered(np.uint8([0, 1, 1, 0]), np.float32([[-1], [2]]), (2, 2), np.float32)
      >>> mask_zeros(signs, np.array([[True, False], [True, True]])).decode().tolist()
      [[-1.0, 0.0], [2.0, -1.0]]
    """
    # Where the leaf is zero anyway the mask is free: whole blocks of zeros cost no bits twice.
    kept = kept | (np.asarray(leaf.decode()) == 0)
    if kept.all():
        return leaf
    orders = dict.fromkeys((tuple(range(kept.ndim)), output_first(kept.ndim)))
    return Masked(leaf, min((_in_blocks(kept, order) for order in orders), key=_entropy))


def _in_blocks(kept: np.ndarray, order: tuple[int, ...]) -> Clustered:
    """Blocks of four along the rows; padding counts as kept."""
    d = _BLOCK if kept.ndim > 1 else 1
    columns = math.prod(kept.shape[a] for a in order[1:]) if d > 1 else kept.size
    rows = np.pad(kept.transpose(order).reshape(-1, columns), ((0, 0), (0, -columns % d)), constant_values=True)
    patterns = np.packbits(rows.reshape(-1, d), axis=1, bitorder="little")[:, 0]
    used, indices = np.unique(patterns, return_inverse=True)
    codebook = np.unpackbits(used[:, None], axis=1, count=d, bitorder="little")
    return Clustered(indices.reshape(-1).astype(np.uint8), codebook, kept.shape, np.uint8, order)


def _entropy(leaf: Clustered) -> float:
    share = np.bincount(np.asarray(leaf.indices)) / np.size(leaf.indices)
    return float(-np.size(leaf.indices) * (share * np.log2(share)).sum())
