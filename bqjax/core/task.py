"""A task: a network's parameters, data to search on, other data to report on, and a score that both go through.

The contract of a score is ``score(params, batch) -> (sums, count)``. ``sums`` maps metric names to scalars, each
*summed* over the batch's examples, and ``count`` is the number of examples, so that a metric over any number of
batches is ``sum(sums) / sum(count)``, whatever the batch size. Scores are traceable: they may run under ``jax.jit``,
``jax.vmap`` and ``jax.grad``. Where a metric is named to rank or to compare by, a leading ``-`` says that lower is
better (``"-loss"``); the name in ``sums`` has no sign.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

__all__ = ["Predictions", "Score", "Storage", "Task", "signed"]

Array = jax.Array | np.ndarray


class Predictions(NamedTuple):
    """What a network says about each example of a batch.

    Attributes:
      predictions: ``[n]`` class indices.
      right: ``[n]`` whether each is right.
      counted: ``[n]`` False for padding.
      sums: ``[n]`` each example's part in the score's sums, by metric, for metrics other than accuracy whose paired
        differences are wanted; or, where examples are no independent draws, as tokens of a text, ``[groups]`` each group's part.
    """

    predictions: jax.Array
    right: jax.Array
    counted: jax.Array
    sums: Mapping[str, jax.Array] = {}


class Storage(Protocol):
    """The file format of a task's network."""

    @property
    def original_name(self) -> str:
        """What tables call the uncompressed network's file."""
        ...

    def original(self, params: Any) -> bytes:
        """The file of uncompressed parameters, which ratios refer to."""
        ...

    def n_weights(self, params: Any) -> int:
        """The weights that bits are counted over: all of the network, compressed or not."""
        ...

    def save(
        self,
        path: str | os.PathLike[str],
        tree: Any,
        *,
        info: Any = None,
        coder: str = "auto",
        force: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Writes a compressed tree; ``info`` is the report of the search that made it, from which a format may keep something."""
        ...

    def load(self, path: str | os.PathLike[str], like: Any) -> Any:
        """The tree that a file holds, in the structure of ``like``; decoded where the format keeps values only."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A network with data to search on and other data to report on.

    Attributes:
      name: what reports call it.
      params: parameter pytree.
      score: ``score(params, batch) -> (sums, count)``, see :mod:`bqjax.core.task`.
      calibration: batches (pytrees of arrays) for search and calibration.
      test: batches for the reported figures, disjoint from ``calibration``.
      metric: the metric that is reported.
      rank_by: the metric that a search ranks candidates by; a leading ``-`` means lower is better. The default is
        finer than accuracy, which moves in steps of one example.
      predict: ``predict(params, batch) -> Predictions``, from which agreement and paired differences are taken; optional.
      outputs: ``outputs(params, batch) -> [n, ...]``, what the network says of each example before any decision, zero for
        padding; importance of weights is taken from it; optional.
      calibration_name, test_name: what reports call the two sets.
      storage: the file format, where it is another than :mod:`bqjax.codec`, which None stands for.
      agreement: methods see what the uncompressed network says of the calibration examples in place of their labels, see
        :func:`bqjax.core.agreement.agreement_task`. What is reported is scored against the labels all the same.
      traceable: whether ``score`` and ``predict`` can run under ``jax.jit``.
      note: a remark that commands print before they begin.

    Raises:
      ValueError: there are no calibration batches or no test batches, a metric has no name, or agreement is asked of a task that
        predicts nothing.
    """

    name: str
    params: Any
    score: Score
    calibration: Sequence[Any]
    test: Sequence[Any]
    metric: str = "accuracy"
    rank_by: str = "-loss"
    predict: Callable[[Any, Any], Predictions] | None = None
    outputs: Callable[[Any, Any], jax.Array] | None = None
    calibration_name: str = "calibration data"
    test_name: str = "test data"
    storage: Storage | None = None
    agreement: bool = False
    traceable: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("calibration", "test"):
            if not len(getattr(self, field)):
                raise ValueError(f"task {self.name!r} has no {field} batches")
        for field in ("metric", "rank_by"):
            if not getattr(self, field).removeprefix("-"):
                raise ValueError(f"task {self.name!r}: {field} names no metric: {getattr(self, field)!r}")
        if self.agreement and self.predict is None:
            raise ValueError(f"task {self.name!r} has no predict, which agreement is taken from")


Score = Callable[[Any, Any], tuple[Any, Any]]
"""``score(params, batch) -> (sums, count)``: a dict of scalars summed over the batch's examples (or one scalar, which is
then called ``"score"``), and the number of examples. Traceable: it may run under ``jit``, ``vmap`` and ``grad``."""


def signed(metrics: Mapping[str, Any], name: str) -> Any:
    """A metric by name as something to maximise: ``"-loss"`` is minus the entry ``"loss"``.

    Raises:
      ValueError: no metric of this name.
    """
    key = name.removeprefix("-")
    if key not in metrics:
        raise ValueError(f"the score has no metric {key!r}, only {', '.join(metrics)}")
    return -metrics[key] if name.startswith("-") else metrics[key]
