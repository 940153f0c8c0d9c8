"""What an experiment came to: an entry a method, and the rows that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bqjax.core.task import Task
from bqjax.experiment.row import Reference, Row

__all__ = ["Comparison", "Entry", "pareto_front"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method's line: its row and file, or why there is none.

    Attributes:
      label: of the method.
      settings: its ``repr``.
      row: the figures, or None where it failed.
      file: name of the compressed file within the folder of the experiment, or None.
      sha256: checksum of that file.
      error: one line, or None.
      kept: whether the row is from an earlier run.
    """

    label: str
    settings: str
    row: Row | None = None
    file: str | None = None
    sha256: str | None = None
    error: str | None = None
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished experiment.

    Attributes:
      task_name, metric: of the task.
      data: names of the test data and of the calibration data.
      before: the uncompressed network.
      entries: one a method, in the experiment's order.
      fingerprint: of the task: its parameters, data and metrics.
    """

    task_name: str
    metric: str
    data: tuple[str, str]
    before: Reference
    entries: tuple[Entry, ...]
    fingerprint: str = ""

    @classmethod
    def of(cls, task: Task, before: Reference, entries: Sequence[Entry], fingerprint: str = "") -> Comparison:
        """The entries of a task's methods."""
        data = task.test_name, task.calibration_name
        return cls(
            task_name=task.name, metric=task.metric, data=data, before=before, entries=tuple(entries), fingerprint=fingerprint
        )

    @property
    def rows(self) -> list[Row]:
        """The rows of the methods that did not fail."""
        return [entry.row for entry in self.entries if entry.row is not None]

    @property
    def failed(self) -> list[Entry]:
        """The methods that failed."""
        return [entry for entry in self.entries if entry.row is None]

    @property
    def front(self) -> list[str]:
        """Labels of the rows that no other row beats in both bytes and the metric, smallest file first."""
        rows, sign = self.rows, -1 if self.metric.startswith("-") else 1
        return [rows[i].method for i in pareto_front([(row.file_bytes, sign * row.after) for row in rows])]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(bytes, value)`` that no other beats: none is as small and as good, and better in one.

    In ascending order of bytes. Of points that are equal the first is taken.

    >>> pareto_front([(100, 0.9), (50, 0.8), (120, 0.85), (50, 0.8)])
    [1, 0]
    """
    front: list[int] = []
    best = -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front
