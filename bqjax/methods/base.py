"""The interface of compression methods, so that one harness can run any of them on any task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

from bqjax.core.progress import Progress
from bqjax.core.task import Task

__all__ = ["Compressed", "Method", "Uncompressed"]


class Compressed(NamedTuple):
    """What a method made.

    Attributes:
      tree: the compressed tree.
      info: the report of the method's search, as :class:`bqjax.methods.bins.SearchInfo`; None where it had none.
      found: what else it found, kept in the file's metadata.
    """

    tree: Any
    info: Any = None
    found: Mapping[str, str] = {}


class Method(Protocol):
    """A method and its settings. ``label`` is its name in tables."""

    @property
    def label(self) -> str: ...

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        """Compresses ``task.params``, using ``task.calibration`` at most. ``state_path`` makes a search resumable."""
        ...


@dataclass(frozen=True, kw_only=True)
class Uncompressed:
    """The parameters as they are; what the file saves are repeated bytes, such as the zeros of pruned weights."""

    label: str = "float32"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(task.params)
