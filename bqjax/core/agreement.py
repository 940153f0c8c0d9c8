"""Agreement with the uncompressed network in place of labels, so that a search needs none."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bqjax.core.task import Predictions, Task

__all__ = ["agreement_task"]

_TASKS: weakref.WeakKeyDictionary[Task, Task] = weakref.WeakKeyDictionary()


def agreement_task(task: Task) -> Task:
    """A task as methods see it: with ``agreement``, the network's own predictions stand in place of the calibration labels.

    A limit on the loss of accuracy is then one on the share of predictions that change. Accuracy cannot drop by more than that,
    and on few examples it is luckier on those that were searched on than on others.

    Args:
      task: given back as it is where it does not ask for agreement.

    Raises:
      ValueError: the batches are no mappings with ``labels``.
    """
    if not task.agreement:
        return task
    if task not in _TASKS:
        if task.predict is None or not all(isinstance(batch, Mapping) and "labels" in batch for batch in task.calibration):
            raise ValueError(f"task {task.name!r}: agreement needs predict, and batches with 'labels'")
        predict = jax.jit(task.predict) if task.traceable else task.predict
        calibration = [_with_said(batch, jax.device_get(predict(task.params, batch))) for batch in task.calibration]
        _TASKS[task] = dataclasses.replace(task, agreement=False, calibration=calibration)
    return _TASKS[task]


def _with_said(batch: Mapping[str, Any], said: Predictions) -> dict[str, Any]:
    labels = np.asarray(batch["labels"])
    return {**batch, "labels": np.where(np.asarray(said.counted), np.asarray(said.predictions), 0).astype(labels.dtype)}
