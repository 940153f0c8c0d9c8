"""A model's folder as the file format of a task: the one file holds all of its tensors, whatever the network uses of them.

Tensors that the network does not use stand beside the compressed tree. Tensors of equal bytes are tied: one leaf, stored once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bqjax import codec
from bqjax.adapters.checkpoints import Checkpoint
from bqjax.adapters.folder import ModelFolder, folder_metadata
from bqjax.adapters.origin import origin_metadata
from bqjax.codec.same import fingerprint

__all__ = ["FolderStorage", "tied_names"]

_MIN_BYTES = 256  # of equal tensors below it, which are mostly constant, nothing is known


def tied_names(tensors: Mapping[str, np.ndarray], first: Sequence[str] = ()) -> dict[str, str]:
    """Tensors of two or more dimensions that have the bytes of another, by name: that other's name.

    Args:
      tensors: arrays by name.
      first: names that others are tied to, rather than they to others, the first of them first.

    Example:
      >>> w = np.arange(64.0).reshape(8, 8)
      >>> tied_names({"head": w, "norm": np.ones(64), "embedding": w.copy()}, ["embedding"])
      {'head': 'embedding'}
    """
    found: dict[bytes, list[str]] = {}
    for name, array in tensors.items():
        if array.ndim >= 2 and array.nbytes >= _MIN_BYTES:
            digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            found.setdefault(digest.digest(), []).append(name)
    tied: dict[str, str] = {}
    for names in found.values():
        kept = next((name for name in first if name in names), names[0])
        tied |= {name: kept for name in names if name != kept}
    return tied


@dataclass(frozen=True, kw_only=True)
class FolderStorage:
    """The file of a folder (:class:`bqjax.core.task.Storage`), whose tree are the tensors that a network uses.

    Attributes:
      checkpoint: the folder's tensors.
      folder: what stands beside them.
      beside: leaves that are in the file and not in the tree, compressed or as they are.
      tied: names of tensors that are another of the tree or of ``beside``, by that one's name.
      original_name: what tables call the folder.
    """

    checkpoint: Checkpoint
    folder: ModelFolder | None
    beside: Mapping[str, Any]
    tied: Mapping[str, str]
    original_name: str = "the folder as one file"

    def original(self, params: Any) -> bytes:
        """The weights' files, and the files that are carried beside them, end to end."""
        del params
        carried = self.folder.files.values() if self.folder is not None else ()
        return b"".join([*(path.read_bytes() for path in self.checkpoint.files), *carried])

    def n_weights(self, params: Any) -> int:
        """All floating-point weights of the folder; tied ones count once."""
        tensors = self.checkpoint.tensors
        return sum(x.size for name, x in tensors.items() if name not in self.tied and x.type.stored.startswith(("F", "BF")))

    def save(
        self,
        path: str | os.PathLike[str],
        tree: Any,
        *,
        info: Any = None,
        coder: str = "auto",
        force: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> codec.FileInfo:
        """See :func:`bqjax.codec.save`; tensors stand in the order of the folder's files."""
        del info
        tensors = self.checkpoint.tensors
        leaves = {**self.beside, **tree}
        ordered = {name: leaves[self.tied.get(name, name)] for name in tensors}
        about = {**(metadata or {}), **origin_metadata(tensors, self.checkpoint.metadata), **folder_metadata(self.folder)}
        return codec.save(path, ordered, coder=coder, force=force, metadata=about)

    def load(self, path: str | os.PathLike[str], like: Any) -> Any:
        """The tree; what stands beside it is compared with what was to be stored.

        Raises:
          ValueError: see :func:`bqjax.codec.load`.
          RuntimeError: a tensor beside the tree does not decode to what was written.
        """
        loaded = codec.load(path)
        for name, leaf in self.beside.items():
            if fingerprint(name, loaded[name]) != fingerprint(name, leaf):
                raise RuntimeError(f"{os.fspath(path)}: tensor {name!r} does not decode to what was written into it")
        return {name: loaded[name] for name in like}
