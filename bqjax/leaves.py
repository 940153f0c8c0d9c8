"""Compressed leaves: small structs that stand in a parameter pytree where an array stood.

Each is a registered dataclass (array fields are traced, the rest is static), so a compressed tree goes through
``jax.jit``, ``jax.vmap`` and ``jax.tree.map`` like any other, and :func:`decode` may run inside a network's
forward pass. Constructors do not check their fields, because JAX rebuilds these structs with tracers in them;
``validate()`` does, and everything that makes or reads a leaf calls it.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax import blocks

__all__ = ["Affine", "Clustered", "CompressedLeaf", "bits", "decode", "index_dtype", "is_compressed", "round_to", "trim_codebook"]

Array = jax.Array | np.ndarray


class CompressedLeaf(abc.ABC):
    """What every compressed leaf can do. ``shape`` and ``dtype`` are those of the array it decodes to."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @abc.abstractmethod
    def decode(self) -> jax.Array:
        """The array of the original shape and dtype. Traceable."""

    @abc.abstractmethod
    def validate(self, name: str = "leaf") -> None:
        """Raises ``ValueError`` naming ``name`` where an invariant does not hold. Not traceable."""

    @abc.abstractmethod
    def symbols(self) -> Array:
        """The integer codes that a file stores for each block or weight, one-dimensional or of the leaf's shape."""

    @abc.abstractmethod
    def n_symbol_values(self) -> int:
        """How many different codes there can be."""

    @abc.abstractmethod
    def table_bits(self) -> int:
        """Bits of everything that is not a code: codebook, scales, zero points."""


def is_compressed(x: Any) -> bool:
    """Whether ``x`` is a compressed leaf; the ``is_leaf`` to map over compressed trees with."""
    return isinstance(x, CompressedLeaf)


def index_dtype(k: int) -> np.dtype:
    """Smallest unsigned type that holds indices into ``k`` values.

    >>> index_dtype(256), index_dtype(257)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.uint8 if k <= 2**8 else np.uint16 if k <= 2**16 else np.uint32)


def round_to(values: Array, dtype: Any) -> jax.Array:
    """Values in a leaf's dtype: integers are rounded to nearest and saturated. Traceable.

    >>> round_to(np.float32([-1.6, 300.0]), np.uint8).tolist()
    [0, 255]
    """
    values = jnp.asarray(values)
    if jnp.issubdtype(dtype, jnp.integer) and jnp.issubdtype(values.dtype, jnp.floating):
        limits = jnp.iinfo(dtype)
        values = jnp.clip(jnp.round(values), limits.min, limits.max)
    return values.astype(dtype)


def trim_codebook(codebook: Array, indices: Array) -> tuple[np.ndarray, np.ndarray]:
    """Drops codebook entries that no index points to, and joins equal ones. The order of entries stays. Not traceable.

    Args:
      codebook: ``[k]``, in any order.
      indices: integers in ``[0, k)`` of any shape, at least one.

    Returns:
      Codebook ``[k']`` of the same dtype, and indices of the same shape in the smallest unsigned type for ``k'``. They
      stand for the same values.

    Example:
      >>> trim_codebook(np.float32([5, 3, 3, 7]), np.array([2, 0, 1, 2]))
      (array([5., 3.], dtype=float32), array([1, 0, 1, 1], dtype=uint8))
    """
    values, old = np.asarray(codebook), np.asarray(indices)
    used = np.flatnonzero(np.bincount(old.ravel(), minlength=values.size))
    # Compared in float64, which every shorter type converts to exactly and NumPy's sorting knows.
    _, first, inverse = np.unique(values[used].astype(np.float64), return_index=True, return_inverse=True)
    kept = np.sort(first)
    renumbered = np.zeros(values.size, index_dtype(kept.size))
    renumbered[used] = np.searchsorted(kept, first[inverse])
    return values[used[kept]], renumbered[old]


def _concrete(x: Any) -> np.ndarray | None:
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


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
      axis_order: permutation of the weight's axes for the block layout (see :mod:`bqjax.blocks`).
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

    def symbols(self) -> Array:
        return self.indices

    def n_symbol_values(self) -> int:
        return self.k

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
        if not np.isfinite(codebook.astype(np.float64)).all():
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


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scale", "zero_point"], meta_fields=["axis", "dtype"])
@dataclass(frozen=True)
class Affine(CompressedLeaf):
    """Integer codes on a line: ``(codes - zero_point) * scale``, per tensor or per slice of one axis.

    Attributes:
      codes: int8 or uint8 of the weight's shape.
      scale: floating point, ``[]`` or ``[shape[axis]]``, finite and positive.
      zero_point: int32 of the shape of ``scale``.
      axis: the axis that ``scale`` runs along, or None for one scale.
      dtype: dtype of the decoded weight.
    """

    codes: Array
    scale: Array
    zero_point: Array
    axis: int | None
    dtype: np.dtype

    def __init__(self, codes: Array, scale: Array, zero_point: Array, axis: int | None = None, dtype: Any = np.float32):
        fields = {"codes": codes, "scale": scale, "zero_point": zero_point, "axis": axis, "dtype": np.dtype(dtype)}
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
        return (offset.astype(scale.dtype) * scale).astype(self.dtype)

    def symbols(self) -> Array:
        return self.codes

    def n_symbol_values(self) -> int:
        return 256

    def table_bits(self) -> int:
        return 8 * sum(np.asarray(x).nbytes for x in (self.scale, self.zero_point))

    def validate(self, name: str = "leaf") -> None:
        codes, scale, zero_point = (np.asarray(x) for x in (self.codes, self.scale, self.zero_point))
        if codes.dtype not in (np.int8, np.uint8):
            raise ValueError(f"{name}: affine codes must be int8 or uint8, got {codes.dtype}")
        if self.axis is not None and not 0 <= self.axis < codes.ndim:
            raise ValueError(f"{name}: axis {self.axis} does not exist in shape {codes.shape}")
        expected = () if self.axis is None else (codes.shape[self.axis],)
        if scale.shape != expected or zero_point.shape != expected:
            raise ValueError(f"{name}: scale and zero_point must have shape {expected}, got {scale.shape} and {zero_point.shape}")
        if not jnp.issubdtype(scale.dtype, jnp.floating) or zero_point.dtype != np.int32:
            raise ValueError(f"{name}: scale must be floating point and zero_point int32, got {scale.dtype} and {zero_point.dtype}")
        if not (np.isfinite(scale.astype(np.float64)).all() and (scale.astype(np.float64) > 0).all()):
            raise ValueError(f"{name}: scales must be finite and positive")


def decode(tree: Any) -> Any:
    """Replaces every compressed leaf by the array it stands for; other leaves pass through untouched.

    Traceable, so ``apply(decode(tree), x)`` under ``jit`` runs a network from its compressed parameters.

    Example:
      >>> leaf = Clustered(np.array([0, 1, 1, 0], np.uint8), np.array([[-1.0], [2.0]], np.float32), (2, 2), np.float32)
      >>> decode({"w": leaf})["w"].tolist()
      [[-1.0, 2.0], [2.0, -1.0]]
    """
    return jax.tree.map(lambda x: _decode(x) if is_compressed(x) else x, tree, is_leaf=is_compressed)


@jax.jit  # as one, so that no index of four bytes a weight is stored in between
def _decode(leaf: CompressedLeaf) -> jax.Array:
    return leaf.decode()


def _entropy_bits(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if counts.size else 0.0


def bits(tree: Any, counting: str = "fixed") -> float:
    """Storage of a tree in bits, by formula. The bytes of the saved file are the truth; this predicts them.

    A compressed leaf costs its codes and its table (codebook, scales), an array leaf its bytes. A codebook that a
    group shares is counted once.

    Args:
      tree: a compressed tree, or one compressed leaf.
      counting: ``"fixed"`` takes ``ceil(log2 k)`` bits a code, the paper's count (III-A:
        ``log2(b) nm + 32 b``); ``"entropy"`` takes the empirical entropy of each leaf's codes.

    Raises:
      ValueError: for another ``counting``.

    Example:
      >>> leaf = Clustered(np.zeros(100, np.uint8), np.zeros((4, 1), np.float32), (10, 10), np.float32)
      >>> bits(leaf), bits(leaf, "entropy")
      (328.0, 128.0)
    """
    if counting not in ("fixed", "entropy"):
        raise ValueError(f'counting must be "fixed" or "entropy", got {counting!r}')
    total, seen = 0.0, set()
    for leaf in jax.tree.leaves(tree, is_leaf=is_compressed):
        if not is_compressed(leaf):
            total += 8 * np.asarray(leaf).nbytes
            continue
        if counting == "fixed":
            total += math.ceil(math.log2(leaf.n_symbol_values())) * math.prod(leaf.symbols().shape)
        else:
            total += _entropy_bits(np.asarray(leaf.symbols()))
        group = getattr(leaf, "group", None)
        if group is None or group not in seen:
            total += leaf.table_bits()
            seen.add(group)
    return total
