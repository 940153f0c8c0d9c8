"""Passes of a network over a task's batches: metrics, predictions, and what each example adds."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core.task import Task

__all__ = ["Scored", "paired_error", "score_on"]


class Scored(NamedTuple):
    """What one pass over some batches gives.

    Attributes:
      metrics: means over the examples.
      n_examples: what the score counts.
      predictions: of each counted example, or None where the task has none.
      parts: what each counted example adds to the sum of the task's metric, or None where predictions do not tell.
    """

    metrics: dict[str, float]
    n_examples: int
    predictions: np.ndarray | None
    parts: np.ndarray | None


# Compiled once a task: a table of twenty rows would otherwise compile the network forty times.
_PASSES: weakref.WeakKeyDictionary[Task, Callable[[Any, Any], Any]] = weakref.WeakKeyDictionary()


def _pass_of(task: Task) -> Callable[[Any, Any], Any]:
    score, predict = task.score, task.predict

    def both(params: Any, batch: Any) -> Any:
        # One function for both: XLA computes their common forward pass once.
        sums, count = score(params, batch)
        sums = dict(sums) if isinstance(sums, Mapping) else {"score": sums}
        return sums, count, None if predict is None else predict(params, batch)

    if task not in _PASSES:
        _PASSES[task] = jax.jit(both) if task.traceable else both
    return _PASSES[task]


def score_on(task: Task, params: Any, batches: Sequence[Any]) -> Scored:
    """Scores parameters on batches of a task.

    Raises:
      ValueError: no example was counted; a metric is NaN or infinite.
    """
    function = _pass_of(task)
    found = jax.device_get([function(params, batch) for batch in batches])
    count = sum(float(n) for _, n, _ in found)
    if not count > 0:
        raise ValueError(f"the score of task {task.name!r} counted no examples in any batch")
    metrics = {name: sum(float(sums[name]) for sums, _, _ in found) / count for name in found[0][0]}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"the score's {name!r} is {value}: repair the network or the score of task {task.name!r}")
    if task.predict is None:
        return Scored(metrics, round(count), None, None)
    keep = np.concatenate([np.asarray(said.counted, bool) for _, _, said in found])
    predictions, right = (np.concatenate([said[i] for _, _, said in found])[keep] for i in range(2))
    parts, metric = None, task.metric.removeprefix("-")
    if metric == "accuracy":  # of which right and wrong are the examples' own values
        parts = right.astype(np.float64)
    elif metric in found[0][2].sums:
        parts = np.concatenate([said.sums[metric] for _, _, said in found])[keep].astype(np.float64)
    return Scored(metrics, round(count), predictions, parts)


def paired_error(before: np.ndarray | None, after: np.ndarray | None, count: float) -> float | None:
    """Standard error of the difference of two means over the same examples, from each example's own difference.

    Args:
      before, after: ``[n]`` what each example adds to the sum of the metric, see :class:`Scored`.
      count: what the sums are divided by.

    Returns:
      ``std(after - before) sqrt(n) / count``, or None where an argument is None.

    Example:
      >>> paired_error(np.array([1.0, 1, 0, 0]), np.array([0.0, 1, 1, 0]), 4)
      0.3535533905932738
    """
    if before is None or after is None:
        return None
    changed = after - before
    return float(changed.std() * math.sqrt(len(changed)) / count)
