"""A budget behind the interface of :mod:`bqjax.methods.base`: a plan is found for the task, and carried out."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax

from bqjax.core.progress import Progress
from bqjax.core.task import Task
from bqjax.methods.base import Compressed
from bqjax.methods.budget.plan import BudgetConfig
from bqjax.methods.budget.search import find_plan

__all__ = ["WithinBudget"]


@dataclass(frozen=True, kw_only=True)
class WithinBudget:
    """Rate-distortion allocation: the smallest file at some drop, or the least distortion at some size.

    Layer by layer, see :mod:`bqjax.methods.budget.search`.

    Attributes:
      max_drop: largest drop of the task's metric on the calibration data, as a fraction.
      confidence: with ``max_drop``, of keeping it on other data, see :func:`bqjax.methods.budget.search.find_plan`.
      target_bytes: or the largest size of the file.
      budget: what layers are offered.

    Raises:
      ValueError: neither or both of ``max_drop`` and ``target_bytes``.
    """

    max_drop: float | None = None
    confidence: float = 0.5
    target_bytes: int | None = None
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    label: str = "planned"

    def __post_init__(self) -> None:
        if (self.max_drop is None) == (self.target_bytes is None):
            raise ValueError("name either max_drop or target_bytes")

    @property
    def search_name(self) -> str:
        """Budgets share what was measured of the layers, whatever their size or drop is."""
        budget = self.budget
        return f"planned {(budget.draws, budget.floor, budget.iterations)}"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        plan = find_plan(
            task,
            self.budget,
            key=key,
            target_bytes=self.target_bytes,
            max_drop=self.max_drop,
            confidence=self.confidence,
            label=self.label,
            state_path=state_path,
            progress=progress,
        )
        return plan.method.compress(task, key=key, progress=progress)
