"""The file format of a task: the container of :mod:`bqjax.codec`, or what the task brings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bqjax import codec
from bqjax.codec.plain import float_file
from bqjax.core.leaves import decode
from bqjax.core.task import Storage, Task
from bqjax.core.tree import named_leaves

__all__ = ["Container", "same_tree", "storage_of", "write_checked"]


class Container:
    """Trees as files of :mod:`bqjax.codec`, against a safetensors file of the parameters."""

    original_name = "float32"

    def original(self, params: Any) -> bytes:
        """The parameters as a safetensors file."""
        return float_file(params)

    def n_weights(self, params: Any) -> int:
        """All parameters."""
        return sum(int(np.size(leaf)) for leaf in named_leaves(params).values())

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
        """See :func:`bqjax.codec.save`; nothing of the search's report is kept."""
        del info
        return codec.save(path, tree, coder=coder, force=force, metadata=metadata)

    def load(self, path: str | os.PathLike[str], like: Any) -> Any:
        """See :func:`bqjax.codec.load`."""
        return codec.load(path, like=like)


def storage_of(task: Task) -> Storage:
    """What a task's files are written and read by."""
    return Container() if task.storage is None else task.storage


def same_tree(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure and the same leaves bit for bit."""
    x, x_def = jax.tree.flatten(a)
    y, y_def = jax.tree.flatten(b)
    if bool(x_def != y_def):  # type: ignore[operator]
        return False
    pairs = [(np.asarray(p), np.asarray(q)) for p, q in zip(x, y, strict=True)]
    return all(p.dtype == q.dtype and p.shape == q.shape and p.tobytes() == q.tobytes() for p, q in pairs)


def write_checked(
    storage: Storage,
    path: str | os.PathLike[str],
    tree: Any,
    *,
    info: Any = None,
    coder: str = "auto",
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Writes a compressed tree and reads it back.

    Args:
      storage: the file format.
      path: of the file.
      tree: what is written.
      info, coder, force, metadata: see :class:`bqjax.core.task.Storage`.

    Returns:
      The tree as the file holds it.

    Raises:
      ValueError: see :func:`bqjax.codec.save`.
      RuntimeError: the file does not decode to what was written.
    """
    storage.save(path, tree, info=info, coder=coder, force=force, metadata=metadata)
    read = storage.load(path, like=tree)
    if not same_tree(tree, read) and not same_tree(decode(tree), read):  # the latter of a format that keeps values only
        raise RuntimeError(f"{os.fspath(path)} does not decode to the tree that was written into it")
    return read
