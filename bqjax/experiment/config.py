"""What the config files of experiments, comparisons and sweeps define."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bqjax.core.progress import Progress
from bqjax.core.task import Task
from bqjax.experiment.figures import Figure
from bqjax.methods.base import Method
from bqjax.methods.budget.plan import BudgetConfig

__all__ = ["CompareConfig", "ExperimentConfig", "SweepConfig", "load_config"]


def load_config(path: Path, *kinds: type) -> Any:
    """The ``config`` of one of some kinds that a Python file defines. The file is run: use files you trust."""
    if not path.is_file():
        raise ValueError(f"no config file {path}")
    config = runpy.run_path(str(path)).get("config")
    if not isinstance(config, kinds):
        wanted = " or ".join(f"`config = {kind.__name__}(...)`" for kind in kinds)
        raise ValueError(f"{path} must define {wanted}, found {type(config).__name__}")
    return config


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """An experiment of ``bqjax compress --config``.

    Attributes:
      task: ``task(data_dir, progress) -> Task``.
      method: makes the file that is kept.
      beside: other methods and settings whose rows stand beside it in the table; their files are not kept.
      seed: of every random draw.
      coder: of the indices, see :mod:`bqjax.codec`.
      data: what the folder of ``--data`` must hold; None where the task needs none.
      budget: what layers are offered under ``--target-size`` and ``--max-drop``, in place of ``method``.
    """

    task: Callable[[Path | None, Progress | None], Task]
    method: Method
    beside: Sequence[Method] = ()
    seed: int = 0
    coder: str = "auto"
    data: str | None = None
    budget: BudgetConfig = field(default_factory=BudgetConfig)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of ``bqjax compare --config``.

    Attributes:
      task: ``task(data_dir, progress) -> Task``.
      methods: what is compared, in the order of the table; labels must differ.
      seed: of every random draw; all methods start from the same key.
      coder: of the indices, see :mod:`bqjax.codec`.
      data: what the folder of ``--data`` must hold; None where the task needs none.
      budget: what layers are offered where ``bqjax compress`` plans for this task.
    """

    task: Callable[[Path | None, Progress | None], Task]
    methods: Sequence[Method]
    seed: int = 0
    coder: str = "auto"
    data: str | None = None
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        labels = [method.label for method in self.methods]
        if not labels:
            raise ValueError("the comparison has no methods")
        for label in labels:
            if not label.strip():
                raise ValueError("a method's label is empty: give it one by label=")
            if labels.count(label) > 1:
                raise ValueError(f"two methods are labelled {label!r}: give one of them another label=")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep of ``bqjax sweep --config``.

    Attributes:
      task: ``task(data_dir, progress) -> Task``.
      figures: what is measured; names must differ.
      seed: of every random draw.
      data: what the folder of ``--data`` must hold; None where the task needs none.
      split: which of the task's data is scored. Gradients are always taken on the calibration data.
      limit: only so many examples of it, the first ones; None takes all.
    """

    task: Callable[[Path | None, Progress | None], Task]
    figures: Sequence[Figure]
    seed: int = 0
    data: str | None = None
    split: Literal["calibration", "test"] = "calibration"
    limit: int | None = None

    def __post_init__(self) -> None:
        names = [figure.name for figure in self.figures]
        if not names:
            raise ValueError("the sweep has no figures")
        for name in names:
            if not re.fullmatch(r"[a-z0-9_-]+", name):
                raise ValueError(f"a figure's name is that of its files: small letters, digits, '_' and '-', got {name!r}")
            if names.count(name) > 1:
                raise ValueError(f"two figures are named {name!r}: give one of them another name=")
        if self.split not in ("calibration", "test"):
            raise ValueError(f"split must be 'calibration' or 'test', got {self.split!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"at least 1 example must be scored, got a limit of {self.limit}")
