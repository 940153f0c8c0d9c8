"""Leaves that are one object, or equal bit for bit, are stored once: tied embeddings, repeated layers, masks."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bqjax.codec import structure
from bqjax.codec.info import LeafInfo
from bqjax.core.leaves import is_compressed

__all__ = ["Written", "again", "check_repeated", "fingerprint"]

# Of equal leaves below it, which are mostly constant, a record would save nothing.
_MIN_BYTES = 256
# What all repetitions take in memory, for each byte of the file: a reader need not believe that a small file is a huge tree.
_MAX_EXPANSION = 1024


def fingerprint(name: str, leaf: Any) -> bytes:
    """Checksum of everything that a leaf is: its arrays bit for bit, and its shape, dtype and order of axes.

    Raises:
      ValueError: naming the leaf, where it cannot be stored.
    """
    arrays, described = jax.tree.flatten(leaf) if is_compressed(leaf) else ([leaf], "")
    digest = hashlib.sha256(f"{type(leaf).__name__ if described else 'array'} {described}".encode())
    for each in arrays:
        array = structure.as_array(name, each)
        digest.update(f"{array.dtype.name} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.digest()


class Written:
    """The leaves that were written so far."""

    def __init__(self) -> None:
        self._objects: dict[int, tuple[Any, LeafInfo]] = {}  # the object is kept, so that no other gets its id
        self._equals: dict[bytes, LeafInfo] = {}
        self._stored = self._repeated = 0

    def object(self, name: str, leaf: Any) -> LeafInfo | None:
        """The description of a leaf whose very object was written already, or None."""
        found = self._objects.get(id(leaf))
        return None if found is None else self._again(found[1], name, tied=True)

    def equal(self, name: str, mark: bytes) -> LeafInfo | None:
        """The description of a leaf whose content was written already, or None."""
        found = self._equals.get(mark)
        return None if found is None else self._again(found, name, tied=False)

    def _again(self, first: LeafInfo, name: str, *, tied: bool) -> LeafInfo | None:
        repeated = self._repeated + _cost(first)
        if repeated > _MAX_EXPANSION * self._stored:
            return None
        self._repeated = repeated
        return first.again(name, tied=tied)

    def add(self, info: LeafInfo, leaf: Any, mark: bytes) -> None:
        """Remembers a leaf that was written."""
        self._stored += info.bytes
        if info.shape:  # one scalar in two places is a constant
            self._objects[id(leaf)] = (leaf, info)
        if info.bytes >= _MIN_BYTES:
            self._equals.setdefault(mark, info)


def _cost(first: LeafInfo) -> int:
    return first.weight_bytes + first.bytes


def check_repeated(infos: Sequence[LeafInfo]) -> None:
    """Raises ``ValueError`` where leaves that repeat earlier ones take more memory than a file of that size may ask for."""
    first = {info.name: info for info in infos}
    repeated = sum(_cost(first[info.same_as]) for info in infos if info.same_as is not None)
    if repeated > _MAX_EXPANSION * sum(info.bytes for info in infos):
        raise ValueError(f"leaves that repeat others would take {repeated} bytes, which a file of this size does not bear out")


def again(leaf: Any, info: LeafInfo) -> Any:
    """A leaf that was read already, for another place of the tree: the same object, or one with arrays of its own."""
    return leaf if info.tied else copy.deepcopy(leaf)
