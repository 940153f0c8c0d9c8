"""Compression methods behind one interface, so that one harness can run any of them on any task.

A method is a frozen dataclass of its settings with ``compress(task, key=...)``. The pure functions underneath
(:func:`~bqjax.bin_and_quant.bin_and_quant`, :func:`~bqjax.related.weight_sharing.kmeans_share`, ...) are the way to
compose them into other programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax

from bqjax.bin_and_quant import BinConfig, BinStats, bin_and_quant, gaussian_bins
from bqjax.progress import Progress
from bqjax.rate import bin_and_quant_at_price
from bqjax.related.weight_sharing import kmeans_share
from bqjax.scoring import task_importance
from bqjax.search import RateConfig, SearchConfig, SearchInfo, search_bins, search_price
from bqjax.task import Task
from bqjax.tree import Rule

__all__ = ["BinAndQuant", "Compressed", "GaussianBins", "KMeans", "Method", "Uncompressed"]


class Compressed(NamedTuple):
    """What a method made: the compressed tree, the report of its search where it had one, and what else it found."""

    tree: Any
    info: SearchInfo | None = None
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


def _at_price(task: Task, stats: BinStats, rate: RateConfig, key: jax.Array, progress: Progress | None) -> Compressed:
    """Weighs bins against storage, at the price given or else at the highest that keeps the limit."""
    importance = task_importance(task, key=key, draws=rate.draws, names=list(stats))
    price = rate.price
    if price is None:
        price = search_price(
            task.score,
            task.params,
            task.calibration,
            stats,
            importance,
            rate,
            metric=task.metric,
            rank_by=task.rank_by,
            progress=progress,
        )
    tree = bin_and_quant_at_price(task.params, stats, importance, price, floor=rate.floor, iterations=rate.iterations)
    return Compressed(tree, found={"price": f"{price:.4g}"})


@dataclass(frozen=True, kw_only=True)
class BinAndQuant:
    """Bin & Quant with its sensitivity search (see :func:`bqjax.search.search_bins`).

    With ``rate``, the bins that were found are then weighed against what storing their indices costs (see
    :func:`bqjax.rate.bin_and_quant_at_price`); the task must have ``outputs``.
    """

    search: SearchConfig = field(default_factory=SearchConfig)
    rate: RateConfig | None = None
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
        if self.rate is None or not stats:
            return Compressed(bin_and_quant(task.params, stats), info)
        return _at_price(task, stats, self.rate, key, progress)._replace(info=info)


@dataclass(frozen=True, kw_only=True)
class GaussianBins:
    """Bins by the normal distribution (see :func:`bqjax.bin_and_quant.gaussian_bins`); needs data with ``rate`` only."""

    bins: int | BinConfig = 8
    rate: RateConfig | None = None
    rules: Sequence[Rule[int | BinConfig]] | None = None
    label: str = "Gaussian bins"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        stats = gaussian_bins(task.params, self.bins, self.rules)
        if self.rate is None:
            return Compressed(bin_and_quant(task.params, stats))
        return _at_price(task, stats, self.rate, key, progress)


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


@dataclass(frozen=True, kw_only=True)
class Uncompressed:
    """The parameters as they are; what the file saves are repeated bytes, such as the zeros of pruned weights."""

    label: str = "float32"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(task.params)
