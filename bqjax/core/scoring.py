"""Evaluation of a network over batches: metrics, predictions, and the standard error of paired differences.

A metric over several batches is ``sum(sums) / sum(count)`` of what a score gives for each (:mod:`bqjax.core.task`). It is
computed here, for single networks and for many candidates at once.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core.task import Predictions, Score, Task

__all__ = ["Scored", "example_parts", "mean_metrics", "named_sums", "paired_error", "score_batches", "score_on"]


def named_sums(sums: Any) -> dict[str, Any]:
    """The sums of a score by metric; a score that gives one scalar names it ``"score"``."""
    return dict(sums) if isinstance(sums, Mapping) else {"score": sums}


def mean_metrics(
    results: Sequence[tuple[Any, Any]],
    *,
    of: str = "the score",
    gather: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means of metrics over the examples of several batches, ``sum(sums) / sum(count)``, added in float64.

    Args:
      results: ``(sums, count)`` of each batch, on the host: scalars, or arrays ``[...]`` with an entry for each candidate.
      of: what errors call the score.
      gather: applied to count and sums, float64 ``[1 + metrics, ...]``, before they are divided; it puts together the parts of
        several processes.

    Returns:
      The metrics, and the count. Of an entry that counted nothing the metrics are its sums.

    Raises:
      ValueError: no example was counted at all.

    Example:
      >>> mean_metrics([({"loss": 6.0}, 2.0), ({"loss": 3.0}, 1.0)])[0]["loss"].item()
      3.0
    """
    named = [(named_sums(sums), count) for sums, count in results]
    names = list(named[0][0])
    rows = [np.stack([np.asarray(x, np.float64) for x in (n, *(sums[name] for name in names))]) for sums, n in named]
    count, *totals = gather(np.sum(rows, axis=0))
    if not np.max(count) > 0:
        raise ValueError(f"{of} counted no examples in any batch")
    return {name: total / np.where(count > 0, count, 1.0) for name, total in zip(names, totals, strict=True)}, count


def score_batches(score: Score, params: Any, batches: Sequence[Any]) -> dict[str, float]:
    """Metrics of parameters, means over the examples of some batches.

    Args:
      score: ``score(params, batch) -> (sums, count)``, see :mod:`bqjax.core.task`; called as it is, so jit it where it can be.
      params: parameters.
      batches: at least one.

    Raises:
      ValueError: no example was counted.
    """
    # All batches are dispatched before the first result is waited for.
    metrics, _ = mean_metrics(jax.device_get([score(params, batch) for batch in batches]))
    return {name: float(value) for name, value in metrics.items()}


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
        return named_sums(sums), count, None if predict is None else predict(params, batch)

    if task not in _PASSES:
        _PASSES[task] = jax.jit(both) if task.traceable else both
    return _PASSES[task]


def score_on(task: Task, params: Any, batches: Sequence[Any]) -> Scored:
    """Evaluates parameters on batches of a task: metrics, and predictions where the task has them.

    Raises:
      ValueError: no example was counted; a metric is NaN or infinite.
    """
    function = _pass_of(task)
    found = jax.device_get([function(params, batch) for batch in batches])
    means, total = mean_metrics([(sums, n) for sums, n, _ in found], of=f"the score of task {task.name!r}")
    metrics, count = {name: float(value) for name, value in means.items()}, float(total)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"the score's {name!r} is {value}: repair the network or the score of task {task.name!r}")
    if task.predict is None:
        return Scored(metrics, round(count), None, None)
    predictions = np.concatenate([np.asarray(said.predictions)[np.asarray(said.counted, bool)] for _, _, said in found])
    own = [pair for _, _, said in found if (pair := example_parts(said, task.metric)) is not None]
    parts = np.concatenate([np.asarray(part, np.float64)[np.asarray(counted, bool)] for part, counted in own]) if own else None
    return Scored(metrics, round(count), predictions, parts)


def example_parts(said: Predictions, metric: str) -> tuple[Any, Any] | None:
    """What each example of a batch adds to the sum of a metric, and which count, or None where predictions do not tell.

    Args:
      said: predictions of a batch.
      metric: its name; a leading minus does not matter.

    Returns:
      ``[n]`` each; of groups of examples, as the tokens of a text, ``[groups]``, and all count: padding adds nothing.
    """
    name = metric.removeprefix("-")
    # Of accuracy, right and wrong are the examples' own values.
    parts = said.right if name == "accuracy" else said.sums.get(name)
    if parts is None:
        return None
    own = np.shape(parts) == np.shape(said.counted)
    return parts, said.counted if own else np.ones(np.shape(parts), bool)


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
