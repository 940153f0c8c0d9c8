"""Slices with steps of their own: a clustered leaf in units that differ from slice to slice by powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves.base import CompressedLeaf, Stream, index_dtype
from bqjax.core.leaves.clustered import Clustered

__all__ = ["Scaled", "SliceOrder", "exponents_of", "slice_order"]

_FURTHEST = 64  # of an exponent: float32 has twice that


class SliceOrder(NamedTuple):
    """The order in which a file has the indices of a scaled leaf: slices by rising exponent, those of one exponent as they were.

    Attributes:
      shape: of the leaf.
      axes: of the leaf, those along which exponents differ first.
      slices: ``[rows]``, numbers of the slices in the file's order.
      breaks: where in that order a new exponent begins, in indices.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    slices: np.ndarray
    breaks: tuple[int, ...]

    def sort(self, indices: np.ndarray) -> np.ndarray:
        """``[n]`` in the leaf's C order to ``[n]`` in the file's."""
        rows = indices.reshape(self.shape).transpose(self.axes).reshape(self._rows)
        return rows[self.slices].reshape(-1)

    def unsort(self, stored: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`sort`."""
        rows = np.empty_like(stored).reshape(self._rows)
        rows[self.slices] = stored.reshape(self._rows)
        moved = rows.reshape([self.shape[axis] for axis in self.axes])
        return moved.transpose(np.argsort(self.axes)).reshape(-1)

    @property
    def _rows(self) -> tuple[int, int]:
        n = len(self.slices)
        return n, math.prod(self.shape) // max(n, 1)


@partial(jax.tree_util.register_dataclass, data_fields=["leaf", "exponents"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Scaled(CompressedLeaf):
    """Single weights in units of their slice's own: ``leaf * 2^exponents``.

    One grid of levels for a leaf gives all its slices one step. Where they do not matter equally, an important one wants a smaller
    step; with it, its indices are spread wider, so that a file codes the slices of each exponent by themselves.

    Attributes:
      leaf: a clustered leaf of float32, single weights in C order, in no group.
      exponents: a clustered leaf of int8, single weights in no group, of as many axes; along each it has the leaf's size, or 1.
      dtype: of the decoded weight, floating point.
    """

    leaf: Clustered
    exponents: Clustered
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.leaf.shape

    def decode(self) -> jax.Array:
        # Exact: exp2 of a whole number need not be.
        return jnp.ldexp(self.leaf.decode(), self.exponents.decode().astype(jnp.int32)).astype(self.dtype)

    def streams(self) -> tuple[Stream, ...]:
        return *self.exponents.streams(), *self.leaf.streams()

    def table_bits(self) -> int:
        return self.leaf.table_bits() + self.exponents.table_bits()

    def validate(self, name: str = "leaf") -> None:
        for what, part, dtype in (("leaf", self.leaf, np.float32), ("exponents", self.exponents, np.int8)):
            if not isinstance(part, Clustered):
                raise ValueError(f"{name}: the {what} under powers of two must be a clustered leaf, got a {type(part).__name__}")
            part.validate(name if what == "leaf" else f"{name}, {what}")
            if part.dtype != dtype or part.d != 1 or part.group is not None or list(part.axis_order) != sorted(part.axis_order):
                raise ValueError(
                    f"{name}: the {what} must be single {np.dtype(dtype)} weights in C order and in no group, got {part.dtype} in "
                    f"blocks of {part.d}, order {part.axis_order}, group {part.group!r}"
                )
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"{name}: scaled weights are of floating point, got {self.dtype}")
        shape, own = self.leaf.shape, self.exponents.shape
        if len(own) != len(shape) or any(one not in (1, size) for one, size in zip(own, shape, strict=True)):
            raise ValueError(f"{name}: exponents of shape {own} are not one for each slice of {shape}")
        if np.abs(np.asarray(self.exponents.codebook).astype(np.int32)).max() > _FURTHEST:
            raise ValueError(f"{name}: exponents must lie between -{_FURTHEST} and {_FURTHEST}")


def slice_order(shape: tuple[int, ...], exponents: Clustered) -> SliceOrder:
    """The order of indices in a file.

    Args:
      shape: of the leaf.
      exponents: of its slices, concrete and valid.
    """
    slices = [axis for axis, size in enumerate(exponents.shape) if size == shape[axis]]
    rest = [axis for axis in range(len(shape)) if axis not in slices]
    columns = math.prod(shape[axis] for axis in rest)
    values = np.asarray(exponents.codebook)[np.asarray(exponents.indices), 0]
    by_exponent = np.argsort(values, kind="stable")
    edges = np.flatnonzero(np.diff(values[by_exponent])) + 1
    return SliceOrder(tuple(shape), (*slices, *rest), by_exponent, tuple(int(edge) * columns for edge in edges))


def exponents_of(values: np.ndarray) -> Clustered:
    """Whole numbers as the exponents of a scaled leaf.

    Args:
      values: integers from -64 to 64, of size 1 along the axes where all slices have the same.

    Raises:
      ValueError: a value beyond.

    Example:
      >>> exponents_of(np.array([[-1], [2], [-1]])).decode().tolist()
      [[-1], [2], [-1]]
    """
    used, indices = np.unique(values, return_inverse=True)
    if used.size and not -_FURTHEST <= int(used[0]) <= int(used[-1]) <= _FURTHEST:
        raise ValueError(f"exponents must lie between -{_FURTHEST} and {_FURTHEST}, got {int(used[0])} to {int(used[-1])}")
    codes = indices.reshape(-1).astype(index_dtype(len(used)))
    return Clustered(codes, used.astype(np.int8)[:, None], values.shape, np.int8)
