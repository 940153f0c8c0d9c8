"""One line of a results table, and the uncompressed network that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bqjax.codec.plain import zstd_bytes
from bqjax.core.scoring import score_on
from bqjax.core.task import Task
from bqjax.experiment.storage import storage_of

__all__ = ["Reference", "Row", "reference"]


@dataclass(frozen=True)
class Row:
    """One line of a results table.

    Attributes:
      method: label of the method.
      before, after: the metric on the test data of the original network and of the decoded file.
      difference: ``after - before``, in the direction where higher is better.
      standard_error: of the paired difference, or None where the task has no predictions or they do not tell the metric's parts.
      agreement: share of test examples on which both predict the same, or None.
      calibration: the metric of the decoded file on the calibration data.
      file_bytes: size of the file.
      ratio: bytes of the original file over ``file_bytes``.
      bits_per_weight: ``8 * file_bytes`` over ALL parameters of the network, compressed or not.
      seconds: that compressing took, search included.
    """

    method: str
    before: float
    after: float
    difference: float
    standard_error: float | None
    agreement: float | None
    calibration: float
    file_bytes: int
    ratio: float
    bits_per_weight: float
    seconds: float


class Reference(NamedTuple):
    """The uncompressed network: its scores, predictions and sizes, taken once for all rows.

    Attributes:
      test, calibration: metrics on both sets.
      predictions: class of each test example, or None.
      parts: what each test example adds to the sum of the metric, or None.
      n_test, n_calibration: examples.
      n_params: parameters.
      float_bytes: of the original file: the parameters as safetensors, or what the task's storage says.
      zstd_bytes: of that file after ``zstd -19``, what lossless compression gives for nothing.
      original_name: what tables call the original file.
    """

    test: Mapping[str, float]
    calibration: Mapping[str, float]
    predictions: np.ndarray | None
    parts: np.ndarray | None
    n_test: int
    n_calibration: int
    n_params: int
    float_bytes: int
    zstd_bytes: int
    original_name: str = "float32"


def reference(task: Task) -> Reference:
    """Scores the uncompressed network of a task on its test and calibration data."""
    storage = storage_of(task)
    data = storage.original(task.params)
    test, calibration = score_on(task, task.params, task.test), score_on(task, task.params, task.calibration)
    return Reference(
        test.metrics,
        calibration.metrics,
        test.predictions,
        test.parts,
        test.n_examples,
        calibration.n_examples,
        storage.n_weights(task.params),
        len(data),
        zstd_bytes(data),
        storage.original_name,
    )
