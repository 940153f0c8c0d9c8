"""Diagonal Gauss-Newton and loss gradient of a task on its calibration data, computed once and kept as long as the task.

The methods of a comparison ask for the same ones, and importance with its draws costs as much as scoring the data some twenty
times.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bqjax.core.journal import digest
from bqjax.core.task import Task
from bqjax.sensitivity.gradient import loss_gradient
from bqjax.sensitivity.importance import output_importance

__all__ = ["task_gradient", "task_importance"]


_LOCK = threading.Lock()  # rows side by side ask for the same
_KEPT: weakref.WeakKeyDictionary[Task, dict[Any, dict[str, np.ndarray]]] = weakref.WeakKeyDictionary()


def _once(task: Task, asked: Any, measure: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    with _LOCK:
        kept = _KEPT.setdefault(task, {})
        if asked not in kept:
            kept[asked] = {name: np.asarray(found) for name, found in measure().items()}
            for array in kept[asked].values():
                array.setflags(write=False)  # the next method gets the same
        return dict(kept[asked])


def task_importance(task: Task, *, key: jax.Array, draws: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Diagonal Gauss-Newton of a task's outputs on its calibration data.

    See :func:`~bqjax.sensitivity.importance.output_importance`.

    Args:
      task: the network.
      key: a ``jax.random`` key.
      draws: passes over the data.
      names: the leaves wanted; None takes all of floating point.

    Raises:
      ValueError: the task has no outputs; see also ``output_importance``.
    """
    outputs = task.outputs
    if outputs is None:
        raise ValueError(f"task {task.name!r} has no outputs, which the importance of its weights is taken from")
    asked = "importance", digest(key), draws, None if names is None else tuple(names)
    return _once(task, asked, lambda: output_importance(outputs, task.params, task.calibration, key=key, draws=draws, names=names))


def task_gradient(task: Task) -> dict[str, np.ndarray]:
    """Gradient of the metric that a task ranks by on its calibration data.

    See :func:`~bqjax.sensitivity.gradient.loss_gradient`.
    """
    return _once(task, "gradient", lambda: loss_gradient(task.score, task.params, task.calibration, task.rank_by))
