"""What config files define: an experiment or a sweep."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bqjax.core.progress import Progress
from bqjax.core.recognize import refuse_other
from bqjax.core.task import Task
from bqjax.experiment.figures import Figure
from bqjax.methods.base import Method
from bqjax.methods.budget.plan import BudgetConfig

__all__ = ["Experiment", "SweepConfig", "load_config"]


def load_config(path: Path, *kinds: type) -> Any:
    """The ``config`` of one of some kinds that a Python file defines. The file is run: use files you trust."""
    if not path.is_file():
        raise ValueError(f"no config file {path}")
    refuse_other(path, "a Python file", "text", "json", "empty")
    config = runpy.run_path(str(path)).get("config")
    if not isinstance(config, kinds):
        wanted = " or ".join(f"`config = {kind.__name__}(...)`" for kind in kinds)
        raise ValueError(f"{path} must define {wanted}, found {type(config).__name__}")
    return config


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A task and methods: what ``bqjax compress --config`` and ``bqjax compare --config`` work on.

    Attributes:
      task: ``task(data_dir, progress) -> Task``.
      methods: in the order of the table; labels must differ. The first is the one whose file ``bqjax compress`` writes.
      seed: of every random draw; all methods start from the same key.
      coder: of the indices, see :mod:`bqjax.codec`.
      data: what the folder of ``--data`` must hold; None where the task needs none.
      budget: what layers are offered under ``--plan``, in place of the methods.

    Raises:
      ValueError: there are no methods, or labels are empty or repeat.
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
            raise ValueError("the experiment has no methods")
        for label in labels:
            if not label.strip():
                raise ValueError("a method's label is empty: give it one by label=")
            if labels.count(label) > 1:
                raise ValueError(f"two methods are labelled {label!r}: give one of them another label=")

    def only(self, patterns: Sequence[str]) -> Experiment:
        """The experiment with the methods whose labels are, or match as :mod:`fnmatch` patterns, one of some; none given: all.

        Raises:
          ValueError: a pattern that matches no label.
        """
        labels = [method.label for method in self.methods]
        for pattern in patterns:
            if pattern not in labels and not any(fnmatch.fnmatchcase(label, pattern) for label in labels):
                raise ValueError(f"no method is labelled {pattern!r}, only {', '.join(map(repr, labels))}")
        kept = [m for m in self.methods if any(p == m.label or fnmatch.fnmatchcase(m.label, p) for p in patterns)]
        return dataclasses.replace(self, methods=kept) if patterns else self

    def make_task(self, data_dir: Path | None, progress: Progress | None = None) -> Task:
        """The task, from a folder of data where it needs one.

        Raises:
          ValueError: there must be a folder and is none.
        """
        return _made(self.task, self.data, data_dir, progress)


def _made(task: Callable[[Path | None, Progress | None], Task], data: str | None, folder: Path | None, progress: Any) -> Task:
    if data is not None and folder is None:
        raise ValueError(f"--data is missing: it must name a folder with {data}")
    return task(folder, progress)


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

    def make_task(self, data_dir: Path | None, progress: Progress | None = None) -> Task:
        """As :meth:`Experiment.make_task`."""
        return _made(self.task, self.data, data_dir, progress)
