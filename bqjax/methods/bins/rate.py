"""Entropy-constrained scalar quantization at the highest ``lmbda`` that keeps a limit on calibration data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.task import Score, signed
from bqjax.core.tree import named_leaves
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import BinStats
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.limit import highest_within

__all__ = ["RateConfig", "search_lmbda"]

# Bounds of the search as exponents of two; the unit is what the removal of a weight costs on average, by its importance.
_LOWEST, _HIGHEST = -12.0, 2.0


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """Settings of entropy-constrained scalar quantization, see :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq`.

    Attributes:
      lmbda: Lagrangian weight of a bit; None finds the highest at which the drops keep their limits.
      max_drop: of the metric on calibration data, all leaves compressed together.
      max_rank_drop: likewise of the ranking metric, which moves in finer steps; None sets no limit.
      steps: of the bisection for ``lmbda``; each compresses and scores the network once.
      floor: share of the mean importance that every weight has at least.
      draws: random signs for the importance, see :func:`bqjax.sensitivity.importance.output_importance`.
      iterations: of the alternation between values and assignments.
    """

    lmbda: float | None = None
    max_drop: float = 0.01
    max_rank_drop: float | None = None
    steps: int = 8
    floor: float = 0.02
    draws: int = 4
    iterations: int = 20

    def __post_init__(self) -> None:
        if self.lmbda is not None and not self.lmbda >= 0:
            raise ValueError(f"lmbda must not be negative, got {self.lmbda}")
        for what in ("steps", "draws", "iterations"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} must be at least 1, got {getattr(self, what)}")


def search_lmbda(
    score: Score,
    params: Any,
    batches: Sequence[Any],
    stats: BinStats,
    importance: Mapping[str, Any],
    config: RateConfig,
    *,
    metric: str,
    rank_by: str,
    progress: Progress | None = None,
) -> float:
    """Finds the highest ``lmbda`` of :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq` whose drops keep the limits of ``config``.

    By bisection of its logarithm (:func:`bqjax.sensitivity.limit.highest_within`). What is returned was measured to keep the
    limits; a metric on few examples is not quite monotone, and a higher one may keep them too.

    Args:
      score, batches: calibration data.
      params: parameters.
      stats, importance: see :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq`.
      config: limits and number of steps.
      metric, rank_by: what ``max_drop`` and ``max_rank_drop`` speak of.
      progress: called after each step.

    Raises:
      ValueError: no leaf in ``stats``, or a limit that does not hold at the lowest ``lmbda`` of the search.
    """
    if not stats:
        raise ValueError("there is no leaf to find lmbda for: the search accepted none")
    leaves = named_leaves(params)
    distortion = sum(float(jnp.mean(importance[n])) * float(jnp.var(leaves[n])) * leaves[n].size / 2 for n in stats)
    unit = distortion / sum(leaves[n].size for n in stats) or 1.0
    evaluator = Evaluator(score, batches)
    before = evaluator.baseline(params)
    limits = [(metric, config.max_drop)]
    if config.max_rank_drop is not None:
        limits.append((rank_by, config.max_rank_drop))

    def drops(exponent: float) -> list[float]:
        tree = bin_and_quant_ecsq(params, stats, importance, unit * 2**exponent, floor=config.floor, iterations=config.iterations)
        after = evaluator.baseline(decode(tree))
        return [float(signed(before, by) - signed(after, by)) for by, _ in limits]

    tried = 0

    def excess(exponent: float) -> float:
        """By how much the limit that is missed most is missed; not above 0 where all are kept."""
        nonlocal tried
        lost, tried = drops(exponent), tried + 1
        if progress:
            told = ", ".join(f"{by.removeprefix('-')} {d:+.4f}" for d, (by, _) in zip(lost, limits, strict=True))
            progress(tried, config.steps, f"lmbda {unit * 2**exponent:.3g}: drop of {told}")
        return max(math.inf if math.isnan(d) else d - limit for d, (_, limit) in zip(lost, limits, strict=True))

    for d, (by, limit) in zip(drops(_LOWEST), limits, strict=True):
        if not d <= limit + 1e-9:
            raise ValueError(
                f"these bins cost {d:.4f} of {by.removeprefix('-')} at the lowest lmbda already, more than the limit "
                f"{limit:g}: start from more bins or allow more"
            )
    found = highest_within(excess, 0.0, low=_LOWEST, high=_HIGHEST, steps=config.steps, scan=0)
    return float(unit * 2 ** (_LOWEST if found is None else found))
