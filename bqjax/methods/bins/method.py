"""Bin & Quant behind the interface of :mod:`bqjax.methods.base`: bins searched or Gaussian, plain or entropy-constrained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.methods.base import Compressed
from bqjax.methods.bins.config import SearchConfig
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import BinConfig, BinStats, gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.methods.bins.rate import RateConfig
from bqjax.methods.bins.search import search_bins
from bqjax.sensitivity.lagrangian import search_lambda
from bqjax.sensitivity.task_statistics import task_importance

__all__ = ["BinAndQuant", "GaussianBins"]

_EXPONENTS = (-12.0, 2.0)  # powers of two, of what the removal of a weight costs by its importance


def _ecsq(task: Task, stats: BinStats, rate: RateConfig, key: jax.Array, progress: Progress | None) -> Compressed:
    """Entropy-constrained scalar quantization from these bins, at the ``lmbda`` given or else at the highest within the limits."""
    importance = task_importance(task, key=key, draws=rate.draws, names=list(stats))
    lmbda = rate.lmbda

    def compress(lmbda: float) -> Any:
        return bin_and_quant_ecsq(task.params, stats, importance, lmbda, floor=rate.floor, iterations=rate.iterations)

    if lmbda is None:
        limits = {task.metric: rate.max_drop}
        if rate.max_rank_drop is not None:
            # Where both are of one metric, the tighter one holds.
            limits[task.rank_by] = min(rate.max_rank_drop, limits.get(task.rank_by, math.inf))
        lmbda = search_lambda(
            compress,
            task.score,
            task.params,
            task.calibration,
            importance,
            limits=limits,
            steps=rate.steps,
            exponents=_EXPONENTS,
            progress=progress,
        )
    return Compressed(compress(lmbda), found={"lmbda": f"{lmbda:.4g}"})


@dataclass(frozen=True, kw_only=True)
class BinAndQuant:
    """Bin & Quant with its sensitivity search (see :func:`bqjax.methods.bins.search_bins`).

    With ``rate``, entropy-constrained scalar quantization starts from the bins that were found (see
    :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq`); the task must have ``outputs``.
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
        return _ecsq(task, stats, self.rate, key, progress)._replace(info=info)


@dataclass(frozen=True, kw_only=True)
class GaussianBins:
    """Bins by the normal distribution (see :func:`bqjax.methods.bins.gaussian.gaussian_bins`); needs data with ``rate`` only."""

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
        return _ecsq(task, stats, self.rate, key, progress)
