"""The paper's sensitivity figures, measured: one sweep for all figures of a network, its rows split by figure again.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), figures 2, 3 and 5; III-A to III-C.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core.journal import digest
from bqjax.core.progress import Progress
from bqjax.core.scoring import example_parts
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.experiment.config import SweepConfig
from bqjax.experiment.figures import (
    BinsByLayer,
    Figure,
    NoiseByLayer,
    RandomAgainstGradient,
    RelativeBySize,
    StatisticsAgainstRandom,
)
from bqjax.experiment.statistics import kept_arrays, weight_statistics
from bqjax.sensitivity.gradient import loss_gradient
from bqjax.sensitivity.paired import errors_between
from bqjax.sensitivity.sweep_rows import Statement, statements
from bqjax.sensitivity.sweeps import SweepResult, SweepRow, sweep
from bqjax.sensitivity.task_statistics import task_curvature

__all__ = [
    "BinsByLayer",
    "Comparison",
    "Figure",
    "FigureRows",
    "NoiseByLayer",
    "RandomAgainstGradient",
    "RelativeBySize",
    "StatisticsAgainstRandom",
    "Sweeps",
    "against_zero",
    "compare_halves",
    "run_sweep",
    "state_files",
]


class FigureRows(NamedTuple):
    """A figure and its rows, in the order of its candidates."""

    figure: Figure
    rows: tuple[SweepRow, ...]

    @property
    def leaves(self) -> list[str]:
        """The layers in the figure's order."""
        return list(dict.fromkeys(row.candidate.leaf for row in self.rows))

    @property
    def series(self) -> list[str]:
        """Labels of its series."""
        return list(dict.fromkeys(row.candidate.tags["series"] for row in self.rows))


@dataclass(frozen=True, kw_only=True)
class Sweeps:
    """All figures of a network, measured.

    Attributes:
      task_name, data_name: the network, and the data it was scored on.
      gradient_name: the data that gradients were taken on, or None.
      n_examples: that were scored.
      rank_by: the task's metric that tells small changes apart.
      figures: in the config's order.
      sizes: weights by leaf name.
      spreads: of the leaves that were perturbed, by name: standard deviation of the weights, the largest of them in absolute terms,
        and the root mean square over output channels (the last axis) of each channel's largest.
      result: the whole sweep.
    """

    task_name: str
    data_name: str
    gradient_name: str | None
    n_examples: int
    rank_by: str
    figures: tuple[FigureRows, ...]
    sizes: Mapping[str, int] = field(repr=False)
    spreads: Mapping[str, tuple[float, float, float]] = field(repr=False)
    result: SweepResult = field(repr=False)


class Comparison(NamedTuple):
    """Layers of a figure, those in which the largest-gradient half hurts more, and by more than two standard errors.

    ``clearly`` and ``clearly_less`` are None with one draw, which has no standard error.
    """

    layers: int
    more: int
    less: int
    clearly: int | None
    clearly_less: int | None


def compare_halves(rows: FigureRows, by: str = "largest") -> Comparison:
    """Counts the layers in which the half that the gradient (or another statistic) ranks highest hurts more than a random half."""
    found = {(row.candidate.leaf, row.candidate.tags["by"]): row for row in rows.rows}
    pairs = [(found[leaf, by], found[leaf, "random"]) for leaf in rows.leaves]
    differences = np.array([a.drop - b.drop for a, b in pairs])
    errors = np.array([_error_between(a, b) for a, b in pairs])
    known = bool(np.isfinite(errors).all())
    return Comparison(
        len(pairs),
        int((differences > 0).sum()),
        int((differences < 0).sum()),
        int((differences > 2 * errors).sum()) if known else None,
        int((differences < -2 * errors).sum()) if known else None,
    )


def _error_between(a: SweepRow, b: SweepRow) -> float:
    """Standard error of the difference of two rows: over the same examples where they are told apart, and over draws.

    The draws of both are independent. A random choice spreads more than a fixed one, so the two errors are kept apart.
    """
    if a.differences is None or b.differences is None or len(a.drops) < 2:
        return math.hypot(a.standard_error, b.standard_error)
    return errors_between(a.differences, b.differences, common=False).both


def run_sweep(
    config: SweepConfig,
    task: Task,
    *,
    limit: int | None = None,
    until: str | float | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    budget: float | None = None,
    curvature: bool = False,
    state_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **engine: Any,
) -> Sweeps:
    """Measures all figures of a config in one sweep.

    Args:
      config: what to measure.
      task: from ``config.task``.
      limit: overrides the config's.
      until, confidence, tolerance, budget: of a race, see :func:`bqjax.sensitivity.sweeps.sweep`; candidates race within their
        figure and series.
      curvature: whether rows get a prediction, from the curvature of the task's outputs on its calibration data.
      state_path: a file that keeps what was finished; the gradient is kept beside it, see :func:`state_files`.
      progress: called as candidates are finished, with the time left.
      **engine: see :func:`bqjax.sensitivity.sweeps.sweep`.

    Raises:
      ValueError: a rule that matches no leaf; see also :func:`~bqjax.sensitivity.sweeps.sweep`.
    """
    batches = task.calibration if config.split == "calibration" else task.test
    data_name = task.calibration_name if config.split == "calibration" else task.test_name
    limit = config.limit if limit is None else limit
    n_examples = n_all = _count(task, batches)
    if limit is not None and limit < n_all:
        batches = first_examples(batches, limit)
        n_examples = _count(task, batches)
        data_name = _first(n_examples, n_all, data_name)

    # Before anything is scored, so that a pattern that matches nothing is known at once.
    candidates, parts = [], []
    for figure in config.figures:
        made = [dataclasses.replace(c, tags={**c.tags, "figure": figure.name}) for c in figure.candidates(task.params)]
        candidates += made
        parts.append((figure, len(made)))
    gradients = any(figure.uses_gradient for figure in config.figures)
    statistics = {s: None for figure in config.figures for s in getattr(figure, "statistics", ())}
    key = jax.random.key(config.seed)
    context: dict[str, Any] | None = None
    if statistics:
        context = weight_statistics(task, ["gradient", *(s for s in statistics if s != "gradient")], key, state_path, progress)
    elif gradients:
        context = dict(_gradient(task, state_path, progress))
    result = sweep(
        task.score,
        task.params,
        batches,
        candidates,
        key=key,
        metric=task.metric,
        predict=_told(task, batches[0]),
        until=until,
        confidence=confidence,
        tolerance=tolerance,
        budget=budget,
        context=context,
        curvature=task_curvature(task, key=key) if curvature else None,
        state_path=None if state_path is None else os.fspath(state_path),
        progress=progress,
        **engine,
    )
    rows, leaves = iter(result.rows), named_leaves(task.params)
    return Sweeps(
        task_name=task.name,
        data_name=data_name,
        gradient_name=task.calibration_name if gradients else None,
        n_examples=n_examples,
        rank_by=task.rank_by,
        figures=tuple(FigureRows(figure, tuple(next(rows) for _ in range(n))) for figure, n in parts),
        sizes={name: int(np.size(leaf)) for name, leaf in leaves.items()},
        spreads={name: _spread(leaves[name]) for name in dict.fromkeys(c.leaf for c in candidates)},
        result=result,
    )


def _spread(leaf: Any) -> tuple[float, float, float]:
    array = np.asarray(leaf).astype(np.float64)
    channels = np.abs(array).reshape(-1, array.shape[-1] if array.ndim > 1 else 1).max(0)
    return float(array.std()), float(np.abs(array).max()), float(np.sqrt(np.mean(np.square(channels))))


def against_zero(rows: Sequence[SweepRow], level: float = 0.05) -> list[Statement]:
    """Which rows of a figure differ from zero; see :meth:`bqjax.sensitivity.sweeps.SweepResult.against_zero`."""
    return statements([(i, None) for i in range(len(rows))], [row.errors() for row in rows], level)


def first_examples(batches: Sequence[Any], n: int) -> list[Any]:
    """The first ``n`` examples of some batches, whose arrays must all have the examples first.

    Raises:
      ValueError: ``n`` is below 1, or the arrays of a batch have different lengths.
    """
    if n < 1:
        raise ValueError(f"at least 1 example must be scored, got {n}")
    taken = []
    for batch in batches:
        lengths = {np.shape(x)[:1] for x in jax.tree.leaves(batch)}
        if len(lengths) != 1 or () in lengths:
            raise ValueError("a limit on examples needs batches whose arrays all have the examples as their first axis")
        ((size,),) = lengths
        taken.append(batch if size <= n else jax.tree.map(lambda x, n=n: x[:n], batch))
        n -= size
        if n <= 0:
            break
    return taken


def state_files(state_path: str | os.PathLike[str]) -> list[Path]:
    """The files that :func:`run_sweep` keeps for a state path, as far as they exist."""
    path = Path(state_path)
    return [p for p in (path, *sorted(path.parent.glob(f"{path.name}.gradient-*"))) if p.exists()]


def _told(task: Task, batch: Any) -> Any:
    """The task's predictions where they tell what each example adds to its metric, or None."""
    if task.predict is None or not task.traceable:
        return None
    said = jax.eval_shape(task.predict, task.params, batch)
    return None if example_parts(said, task.metric) is None else task.predict


def _first(n: int, n_all: int, name: str) -> str:
    """What the first examples of some data are called: rows of a batch may hold several each."""
    if n == n_all:
        return name
    bare = re.sub(r"^[\d,]+ ", "", name)
    return f"the first {n:,} of {n_all:,} {bare if bare != name else f'examples of {name}'}"


def _count(task: Task, batches: Sequence[Any]) -> int:
    count = jax.jit(lambda params, batch: task.score(params, batch)[1])
    return round(sum(float(count(task.params, batch)) for batch in batches))


def _gradient(task: Task, state_path: str | os.PathLike[str] | None, progress: Progress | None) -> dict[str, np.ndarray]:
    """The loss's gradient on the calibration data.

    It is kept beside the state file: an accelerator may sum in another order in the next process, and weights at the edge of
    the larger half would change sides in the middle of a sweep.
    """
    of = digest([task.params, list(task.calibration), np.array(task.rank_by)])[:12]
    return dict(
        kept_arrays(
            state_path,
            of,
            lambda: loss_gradient(task.score, task.params, task.calibration, task.rank_by),
            progress,
            "gradient of the loss",
        )
    )
