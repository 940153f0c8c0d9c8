"""What every compressed leaf can do, and the integer types of codes."""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Array", "CompressedLeaf", "Stream", "all_finite", "decode", "index_dtype", "is_compressed", "round_to"]

Array = jax.Array | np.ndarray


class Stream(NamedTuple):
    """Codes that a file stores one after the other: integers of any shape, and how many different ones there can be."""

    symbols: Array
    k: int


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
    def streams(self) -> tuple[Stream, ...]:
        """The codes that a file stores, one stream after the other. Traceable."""

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


def all_finite(values: Array) -> bool:
    """Whether concrete numbers hold neither NaN nor infinities, of any dtype and without NumPy's warning of signalling NaN."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(np.asarray(values).astype(np.float64)).all())


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


def decode(tree: Any) -> Any:
    """Replaces every compressed leaf by the array it stands for; other leaves pass through untouched.

    Traceable, so ``apply(decode(tree), x)`` under ``jit`` runs a network from its compressed parameters.

    Example:
      >>> from bqjax.core.leaves import Clustered
      >>> leaf = Clustered(np.array([0, 1, 1, 0], np.uint8), np.array([[-1.0], [2.0]], np.float32), (2, 2), np.float32)
      >>> decode({"w": leaf})["w"].tolist()
      [[-1.0, 2.0], [2.0, -1.0]]
    """
    return jax.tree.map(lambda x: _decode(x) if is_compressed(x) else x, tree, is_leaf=is_compressed)


@jax.jit  # as one, so that no index of four bytes a weight is stored in between
def _decode(leaf: CompressedLeaf) -> jax.Array:
    return leaf.decode()
