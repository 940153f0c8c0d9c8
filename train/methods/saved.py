"""A file that was made before, as a method: what it decodes to is scored on another task of the same network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import jax

from bqjax import codec
from bqjax.core.progress import Progress
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.methods.base import Compressed

__all__ = ["SavedFile"]


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """The tree of a file, as it is.

    Attributes:
      path: of a file of :func:`bqjax.codec.save`.
      label: in tables.
    """

    path: str | os.PathLike[str]
    label: str = "saved file"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        """See :class:`bqjax.methods.base.Method`.

        Raises:
          ValueError: there is no such file, or it holds other parameters than the task's.
        """
        if not Path(self.path).is_file():
            raise ValueError(f"no file {self.path}: make it first")
        tree = codec.load(self.path, like=task.params)
        for name, leaf in named_leaves(task.params).items():
            if named_leaves(tree)[name].shape != leaf.shape:
                raise ValueError(f"{self.path}: leaf {name!r} has shape {named_leaves(tree)[name].shape}, not {leaf.shape}")
        return Compressed(tree)
