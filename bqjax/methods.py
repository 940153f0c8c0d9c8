"""Compression methods behind one interface, so that one harness can run any of them on any task.

A method is a frozen dataclass of its settings with ``compress(task, key=...)``. The pure functions underneath
(:func:`~bqjax.bin_and_quant.bin_and_quant`, :func:`~bqjax.related.weight_sharing.kmeans_share`, ...) are the way to
compose them into other programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax

from bqjax.bin_and_quant import BinConfig, bin_and_quant, gaussian_bins
from bqjax.progress import Progress
from bqjax.related.weight_sharing import kmeans_share
from bqjax.search import SearchConfig, SearchInfo, search_bins
from bqjax.task import Task
from bqjax.tree import Rule

__all__ = ["BinAndQuant", "Compressed", "GaussianBins", "KMeans", "Method"]


class Compressed(NamedTuple):
    """What a method made: the compressed tree, and the report of its search where it had one."""

    tree: Any
    info: SearchInfo | None = None


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
class BinAndQuant:
    """Bin & Quant with its sensitivity search (see :func:`bqjax.search.search_bins`)."""

    search: SearchConfig = field(default_factory=SearchConfig)
    rules: Sequence[Rule[SearchConfig]] | None = None
    label: str = "B&Q"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        stats, info = search_bins(
            task.score,
            task.params,
            task.calibration,
            self.search,
            key=key,
            rules=self.rules,
            metric=task.metric,
            rank_by=task.rank_by,
            state_path=state_path,
            progress=progress,
        )
        return Compressed(bin_and_quant(task.params, stats), info)


@dataclass(frozen=True, kw_only=True)
class GaussianBins:
    """Bins by the normal distribution alone; needs no data (see :func:`bqjax.bin_and_quant.gaussian_bins`)."""

    bins: int | BinConfig = 8
    rules: Sequence[Rule[int | BinConfig]] | None = None
    label: str = "Gaussian bins"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(bin_and_quant(task.params, gaussian_bins(task.params, self.bins, self.rules)))


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """k-means weight sharing (see :func:`bqjax.related.weight_sharing.kmeans_share`); needs no data."""

    k: int = 16
    rules: Sequence[Rule[int]] | None = None
    label: str = "k-means"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(kmeans_share(task.params, self.k, self.rules))
