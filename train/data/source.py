"""Examples to train on, by their rows: arrays in memory, a part of another source, or files that are read as they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Arrays", "Batch", "Part", "Source"]

Batch = tuple[np.ndarray, np.ndarray]
"""Images ``[n, h, w, c]`` and labels ``[n]`` int32."""


class Source(Protocol):
    """Numbered examples."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, draw: tuple[int, ...] | None = None) -> Batch:
        """The examples ``rows`` in that order.

        Args:
          rows: ``[n]`` integers below the length, not necessarily different.
          draw: for training, what random crops follow from, together with the row: one ``draw`` gives one result, whatever
            else was asked for before. None is for evaluation. Sources without random crops do not look at it.
        """
        ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Examples in memory, as they are."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray, draw: tuple[int, ...] | None = None) -> Batch:
        return self.images[rows], self.labels[rows]


@dataclass(frozen=True, eq=False)
class Part:
    """The examples ``rows`` of another source."""

    whole: Source
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, draw: tuple[int, ...] | None = None) -> Batch:
        return self.whole.batch(self.rows[rows], draw)
