"""Matrices as products of diagonal and binary matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.leaves.base import Array, CompressedLeaf, Stream, all_finite

__all__ = ["MIDDLE_TOTAL", "Factored"]

# Whole numbers up to here, and all sums of them on the way, are exact in float32.
MIDDLE_TOTAL = 2**24


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "left", "middle", "right", "columns"],
    meta_fields=["shape", "dtype"],
)
@dataclass(frozen=True)
class Factored(CompressedLeaf):
    """``W = D1 B1 D2 B2 D3``: diagonal, binary, diagonal, binary, diagonal (Ono 2026, arXiv 2605.05994, equation of DiBA).

    The weight is the matrix ``[m, n]`` of its last axis against all others. The middle diagonal is of whole numbers whose
    sizes add up to at most 2^24: the product of the three inner matrices is then exact in float32, in whatever order
    a program adds, and every program decodes the same bits. What scale they need is in the outer diagonals.

    Attributes:
      rows: ``[m]`` floating point and finite, the diagonal of ``D1``.
      left: ``[m, k]`` uint8, 0 or 1: ``B1``.
      middle: ``[k]`` int16, the diagonal of ``D2``.
      right: ``[k, n]`` uint8, 0 or 1: ``B2``.
      columns: ``[n]`` of the dtype of ``rows``, the diagonal of ``D3``.
      shape: shape of the weight, two or more axes.
      dtype: floating-point dtype of the weight.
    """

    rows: Array
    left: Array
    middle: Array
    right: Array
    columns: Array
    shape: tuple[int, ...]
    dtype: np.dtype

    def __init__(
        self, rows: Array, left: Array, middle: Array, right: Array, columns: Array, shape: tuple[int, ...], dtype: Any = np.float32
    ):
        fields = {
            "rows": rows,
            "left": left,
            "middle": middle,
            "right": right,
            "columns": columns,
            "shape": tuple(shape),
            "dtype": np.dtype(dtype),
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @property
    def k(self) -> int:
        """The middle dimension."""
        return self.middle.shape[-1]

    def decode(self) -> jax.Array:
        rows, columns = jnp.asarray(self.rows), jnp.asarray(self.columns)
        left = jnp.asarray(self.left).astype(jnp.float32) * jnp.asarray(self.middle).astype(jnp.float32)[None]
        inner = jnp.matmul(left, jnp.asarray(self.right).astype(jnp.float32), precision=lax.Precision.HIGHEST)
        width = jnp.promote_types(rows.dtype, jnp.float32)
        values = (inner.astype(width) * columns.astype(width)[None]) * rows.astype(width)[:, None]
        return values.reshape(self.shape).astype(self.dtype)

    def streams(self) -> tuple[Stream, ...]:
        return Stream(self.left, 2), Stream(self.right, 2)

    def table_bits(self) -> int:
        return 8 * sum(np.asarray(x).nbytes for x in (self.rows, self.middle, self.columns))

    def validate(self, name: str = "leaf") -> None:
        if len(self.shape) < 2 or not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"{name}: factors are of floating-point matrices, got {self.dtype} {self.shape}")
        middle = np.asarray(self.middle)
        m, n, k = math.prod(self.shape[:-1]), self.shape[-1], middle.size
        if middle.dtype != np.int16 or middle.ndim != 1 or not k:
            raise ValueError(f"{name}: the middle diagonal must be int16 and not empty, got {middle.dtype} {middle.shape}")
        if (total := int(np.abs(middle.astype(np.int64)).sum())) > MIDDLE_TOTAL:
            raise ValueError(f"{name}: the sizes of the middle diagonal add up to {total}, which is above {MIDDLE_TOTAL}")
        for what, bits, shape in (("left", self.left, (m, k)), ("right", self.right, (k, n))):
            bits = np.asarray(bits)
            if bits.dtype != np.uint8 or bits.shape != shape:
                raise ValueError(f"{name}: the {what} matrix must be uint8 of shape {shape}, got {bits.dtype} {bits.shape}")
            if bits.size and int(bits.max()) > 1:
                raise ValueError(f"{name}: the {what} matrix holds {int(bits.max())}, which is neither 0 nor 1")
        for what, scales, length in (("rows", self.rows, m), ("columns", self.columns, n)):
            scales = np.asarray(scales)
            if scales.shape != (length,) or not jnp.issubdtype(scales.dtype, jnp.floating):
                raise ValueError(f"{name}: {what} must be floating point of shape {(length,)}, got {scales.dtype} {scales.shape}")
            if scales.dtype != self.rows.dtype:
                raise ValueError(f"{name}: rows and columns must have one dtype, got {self.rows.dtype} and {scales.dtype}")
            if not all_finite(scales):
                raise ValueError(f"{name}: {what} hold NaN or infinite values")
