"""Affine integer quantization: weights as codes with scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves.base import Array, CompressedLeaf, Stream, all_finite

__all__ = ["Affine"]


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scale", "zero_point"], meta_fields=["axis", "dtype", "bits"])
@dataclass(frozen=True)
class Affine(CompressedLeaf):
    """Integer codes on a line: ``(codes - zero_point) * scale``, per tensor or per slice of one axis.

    Attributes:
      codes: int8 or uint8 of the weight's shape.
      scale: floating point, ``[]`` or ``[shape[axis]]``, finite and positive.
      zero_point: int32 of the shape of ``scale``.
      axis: the axis that ``scale`` runs along, or None for one scale.
      dtype: dtype of the decoded weight.
      bits: 1 to 8; codes lie in ``[-2^(bits-1), 2^(bits-1))``, unsigned ones in ``[0, 2^bits)``.
    """

    codes: Array
    scale: Array
    zero_point: Array
    axis: int | None
    dtype: np.dtype
    bits: int

    def __init__(
        self,
        codes: Array,
        scale: Array,
        zero_point: Array,
        axis: int | None = None,
        dtype: Any = np.float32,
        bits: int = 8,
    ):
        fields = {
            "codes": codes,
            "scale": scale,
            "zero_point": zero_point,
            "axis": axis,
            "dtype": np.dtype(dtype),
            "bits": bits,
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.codes.shape)

    def decode(self) -> jax.Array:
        broadcast = [1] * self.codes.ndim
        if self.axis is not None:
            broadcast[self.axis] = -1
        scale = jnp.asarray(self.scale).reshape(broadcast)
        offset = jnp.asarray(self.codes).astype(jnp.int32) - jnp.asarray(self.zero_point).astype(jnp.int32).reshape(broadcast)
        # A scale of two bytes is one number of eight or eleven bits; products with it have more.
        exact = jnp.promote_types(scale.dtype, jnp.float32)
        return (offset.astype(exact) * scale.astype(exact)).astype(self.dtype)

    def streams(self) -> tuple[Stream, ...]:
        whole = self.codes.view(np.uint8)
        return (Stream(whole if self.bits == 8 else whole & np.uint8(2**self.bits - 1), 2**self.bits),)

    @classmethod
    def from_symbols(
        cls, symbols: np.ndarray, code_dtype: Any, scale: Array, zero_point: Array, axis: int | None, dtype: Any, bits: int
    ) -> Affine:
        """The leaf of one stream of uint8 ``symbols`` of the weight's shape."""
        codes = symbols.view(code_dtype)
        if codes.dtype == np.int8 and bits < 8:  # the sign is that of the highest bit
            half = np.int8(2 ** (bits - 1))
            codes = (codes ^ half) - half
        return cls(codes, scale, zero_point, axis, dtype, bits)

    def table_bits(self) -> int:
        return 8 * (np.asarray(self.scale).nbytes + self.stored_zero_point().nbytes)

    def stored_zero_point(self) -> np.ndarray:
        """Zero points as a file has them: none where all are 0, in the dtype of the codes where they fit, or else as they are."""
        zero_point, kind = np.asarray(self.zero_point), self.codes.dtype
        if not zero_point.any():
            return np.zeros(0, kind)
        fits = np.iinfo(kind).min <= int(zero_point.min()) and int(zero_point.max()) <= np.iinfo(kind).max
        return zero_point.astype(kind) if fits else zero_point

    def validate(self, name: str = "leaf") -> None:
        codes, scale, zero_point = (np.asarray(x) for x in (self.codes, self.scale, self.zero_point))
        if codes.dtype not in (np.int8, np.uint8):
            raise ValueError(f"{name}: affine codes must be int8 or uint8, got {codes.dtype}")
        if type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise ValueError(f"{name}: affine codes have 1 to 8 bits, got {self.bits!r}")
        low = 0 if codes.dtype == np.uint8 else -(2 ** (self.bits - 1))
        high = low + 2**self.bits - 1
        if self.bits < 8 and codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
            raise ValueError(
                f"{name}: {codes.dtype} codes of {self.bits} bits lie between {low} and {high}, got {codes.min()} to {codes.max()}"
            )
        if self.axis is not None and not 0 <= self.axis < codes.ndim:
            raise ValueError(f"{name}: axis {self.axis} does not exist in shape {codes.shape}")
        expected = () if self.axis is None else (codes.shape[self.axis],)
        if scale.shape != expected or zero_point.shape != expected:
            raise ValueError(f"{name}: scale and zero_point must have shape {expected}, got {scale.shape} and {zero_point.shape}")
        if not jnp.issubdtype(scale.dtype, jnp.floating) or zero_point.dtype != np.int32:
            raise ValueError(f"{name}: scale must be floating point and zero_point int32, got {scale.dtype} and {zero_point.dtype}")
        if not (all_finite(scale) and (scale > 0).all()):
            raise ValueError(f"{name}: scales must be finite and positive")
