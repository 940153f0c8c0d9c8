"""Curvature, diagonal Gauss-Newton and loss gradient of a task on its calibration data, computed once and kept as long as the task.

The methods of a comparison ask for the same ones, and importance with its draws costs as much as scoring the data some twenty
times.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from bqjax.core.journal import digest
from bqjax.core.task import Task
from bqjax.sensitivity.curvature import Curvature, output_curvature
from bqjax.sensitivity.gradient import loss_gradient
from bqjax.sensitivity.importance import output_importance

__all__ = ["once", "task_curvature", "task_gradient", "task_importance"]

T = TypeVar("T")

_LOCK = threading.Lock()  # rows side by side ask for the same
_KEPT: weakref.WeakKeyDictionary[Task, dict[Any, Any]] = weakref.WeakKeyDictionary()


def once(task: Task, asked: Any, measure: Callable[[], T]) -> T:
    """What ``measure`` gives, kept as long as the task under a hashable name; further calls with that name get the same."""
    with _LOCK:
        kept = _KEPT.setdefault(task, {})
        if asked not in kept:
            kept[asked] = measure()
        found: T = kept[asked]
        return found


def _frozen(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays, not to be written to: the next method gets the same."""
    frozen = {name: np.asarray(array) for name, array in arrays.items()}
    for array in frozen.values():
        array.setflags(write=False)
    return frozen


def task_curvature(
    task: Task, *, key: jax.Array, positions: int = 2048, draws: int = 1, examples: int = 32, max_width: int | None = None
) -> Curvature:
    """Curvature of a task's outputs on its calibration data.

    Args:
      task: the network.
      key: a ``jax.random`` key.
      positions, draws, examples, max_width: see :func:`~bqjax.sensitivity.curvature.output_curvature`.

    Raises:
      ValueError: the task has no outputs; see also ``output_curvature``.
    """
    outputs = task.outputs
    if outputs is None:
        raise ValueError(f"task {task.name!r} has no outputs, which the curvature of its weights is taken from")
    asked = "curvature", digest(key), positions, draws, examples, max_width

    def measure() -> Curvature:
        return output_curvature(
            outputs,
            task.params,
            task.calibration,
            key=key,
            positions=positions,
            draws=draws,
            examples=examples,
            max_width=max_width,
        )

    return once(task, asked, measure)


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

    def measure() -> dict[str, np.ndarray]:
        return _frozen(output_importance(outputs, task.params, task.calibration, key=key, draws=draws, names=names))

    return dict(once(task, asked, measure))


def task_gradient(task: Task) -> dict[str, np.ndarray]:
    """Gradient of the metric that a task ranks by on its calibration data.

    See :func:`~bqjax.sensitivity.gradient.loss_gradient`.
    """

    def measure() -> dict[str, np.ndarray]:
        return _frozen(loss_gradient(task.score, task.params, task.calibration, task.rank_by))

    return dict(once(task, "gradient", measure))
