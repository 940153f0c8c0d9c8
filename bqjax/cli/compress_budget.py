"""What ``bqjax compress --target-size`` and ``--max-drop`` mean: one lmbda for all leaves, or a plan layer by layer.

:mod:`bqjax.cli.compress_arguments` parses their arguments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from rich.console import Console

from bqjax.core.agreement import agreement_task
from bqjax.core.task import Task
from bqjax.experiment import Experiment
from bqjax.methods.budget.search import BudgetPlan, find_plan
from bqjax.methods.rate_distortion import RateDistortion
from bqjax.report.console import progress_bar
from bqjax.report.plan import plan_table, plan_text
from bqjax.report.tables import rich_table
from bqjax.report.units import unit_of

__all__ = ["Budget", "parse_size", "plan_within"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str, option: str = "--target-size") -> int:
    """Bytes of a size as people write it: ``200KB`` is 200,000 bytes, ``200KiB`` 204,800. Errors name the ``option``.

    Raises:
      ValueError: it is no size, or below one byte.

    >>> parse_size("200KB"), parse_size("1.5 MiB"), parse_size("12_000")
    (200000, 1572864, 12000)
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{option} {text!r} is no size: write bytes, or a number with KB, MB, KiB or MiB")
    size = int(float(match[1].replace("_", "")) * _UNITS[match[2].lower()])
    if size < 1:
        raise ValueError(f"{option} {text!r} is less than a byte")
    return size


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a file must keep: a size as people write it, or a drop at a confidence, as tables show it: in points or nats.

    Raises:
      ValueError: the size is none, the drop is negative.
    """

    target_size: str | None = None
    max_drop: float | None = None
    confidence: float = 0.5

    def __post_init__(self) -> None:
        if self.target_size is not None:
            parse_size(self.target_size)
        if self.max_drop is not None and not self.max_drop >= 0:
            raise ValueError(f"--max-drop must not be negative, got {self.max_drop:g}: the uncompressed network has no drop")

    def label(self, how: str) -> str:
        """Of the row, made in a way of this name."""
        if self.target_size is not None:
            return f"{how}, {self.target_size}"
        return f"{how}, drop {self.max_drop:g}" + (f" at {self.confidence:g}" if self.confidence > 0.5 else "")

    @property
    def target_bytes(self) -> int | None:
        """The size in bytes."""
        return None if self.target_size is None else parse_size(self.target_size)

    def drop(self, metric: str) -> float | None:
        """The drop as the metric has it."""
        return None if self.max_drop is None else unit_of(metric).value(self.max_drop)

    def method(self, experiment: Experiment, metric: str) -> RateDistortion:
        """What makes the file with no plan: by the settings of the experiment's first such row, or the default ones."""
        rows = [method for method in experiment.methods if isinstance(method, RateDistortion)]
        return replace(
            rows[0] if rows else RateDistortion(lmbda=0.0),
            lmbda=None,
            target_bytes=self.target_bytes,
            max_drop=self.drop(metric),
            max_rank_drop=None,
            confidence=self.confidence,
            coder=experiment.coder,
            label=self.label("rate-distortion"),
        )


def plan_within(
    budget: Budget, experiment: Experiment, task: Task, state: Path, about: tuple[Path, Path, str], console: Console
) -> tuple[BudgetPlan, str]:
    """Finds a plan and shows it.

    Args:
      budget: what it must keep.
      experiment: says what layers are offered.
      task: of the experiment.
      state: keeps what was measured.
      about: the config's path, that of the plan, and the command.
      console: shows the plan.

    Returns:
      The plan, and the text of a config that makes its file again.
    """
    state.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar(console, "planning") as progress:
        plan = find_plan(
            agreement_task(task),
            experiment.budget,
            key=jax.random.key(experiment.seed),
            target_bytes=budget.target_bytes,
            max_drop=budget.drop(task.metric),
            confidence=budget.confidence,
            label=budget.label("planned"),
            coder=experiment.coder,
            state_path=state,
            progress=progress,
        )
    console.print(rich_table(plan_table(plan, task.metric)))
    return plan, plan_text(plan.method, *about)
