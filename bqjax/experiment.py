"""Runs a method on a task and measures what came out, from the file that was written.

Every figure of a :class:`Row` is taken on ``task.test`` from parameters that were decoded from the file; methods
see ``task.calibration`` only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import zstandard
from safetensors.numpy import save as safetensors_bytes

from bqjax import codec
from bqjax.leaves import decode
from bqjax.methods import BinAndQuant, Method
from bqjax.planned import BudgetConfig
from bqjax.progress import Progress
from bqjax.scoring import paired_error, score_on
from bqjax.search import SearchInfo
from bqjax.sensitivity.evaluate import signed
from bqjax.task import Task
from bqjax.tree import named_leaves

__all__ = [
    "ExperimentConfig",
    "Outcome",
    "Reference",
    "Row",
    "float_file",
    "reference",
    "run",
    "same_tree",
    "search_name",
    "zstd_bytes",
]


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
      ratio: bytes of the float file over ``file_bytes``.
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
      float_bytes: of the parameters as a safetensors file.
      zstd_bytes: of that file after ``zstd -19``, what lossless compression gives for nothing.
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


class Outcome(NamedTuple):
    """A finished run: its row, the tree as read back from the file, and the search's report."""

    row: Row
    tree: Any
    info: SearchInfo | None


def float_file(params: Any) -> bytes:
    """Parameters as the bytes of a safetensors file, the size that ratios are taken against."""
    return safetensors_bytes({name: np.array(leaf, order="C") for name, leaf in named_leaves(params).items()})


def zstd_bytes(data: bytes, level: int = 19) -> int:
    """Size of ``data`` after zstd at ``level``, the lossless baseline."""
    return len(zstandard.ZstdCompressor(level=level).compress(data))


def reference(task: Task) -> Reference:
    """Scores the uncompressed network of a task on its test and calibration data."""
    data = float_file(task.params)
    test, calibration = score_on(task, task.params, task.test), score_on(task, task.params, task.calibration)
    return Reference(
        test.metrics,
        calibration.metrics,
        test.predictions,
        test.parts,
        test.n_examples,
        calibration.n_examples,
        sum(int(np.size(x)) for x in named_leaves(task.params).values()),
        len(data),
        zstd_bytes(data),
    )


def search_name(method: Method) -> str:
    """What a method's search is known by: methods of one name can share the measurements of a state file.

    A method whose measurements serve others than itself says so by a ``search_name`` of its own.
    """
    if isinstance(method, BinAndQuant):
        return repr((method.search, method.rules))
    return str(getattr(method, "search_name", method.label))


def same_tree(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure and the same leaves bit for bit."""
    x, x_def = jax.tree.flatten(a)
    y, y_def = jax.tree.flatten(b)
    if bool(x_def != y_def):  # type: ignore[operator]
        return False
    pairs = [(np.asarray(p), np.asarray(q)) for p, q in zip(x, y, strict=True)]
    return all(p.dtype == q.dtype and p.shape == q.shape and p.tobytes() == q.tobytes() for p, q in pairs)


def run(
    task: Task,
    method: Method,
    path: str | os.PathLike[str],
    before: Reference,
    *,
    key: jax.Array,
    coder: str = "auto",
    force: bool = False,
    state_path: str | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Outcome:
    """Compresses, writes the file, reads it back, decodes and scores what was decoded on the test data.

    Args:
      task: the network and its data.
      method: what compresses it.
      path: the file.
      before: from :func:`reference`.
      key: a ``jax.random`` key.
      coder: see :func:`bqjax.codec.save`.
      force: overwrite an existing file.
      state_path: keeps a search's measurements, so that it can be interrupted.
      progress: called as the method goes on.
      metadata: strings to keep in the file.

    Raises:
      ValueError: see the method and :func:`bqjax.codec.save`.
      RuntimeError: the file does not decode to what was written.
    """
    if Path(path).exists() and not force:
        raise ValueError(f"{os.fspath(path)} exists: pass force=True to overwrite it")  # before a search of hours
    start = time.monotonic()
    compressed, info, found = method.compress(task, key=key, state_path=state_path, progress=progress)
    seconds = time.monotonic() - start
    codec.save(path, compressed, coder=coder, force=force, metadata={**(metadata or {}), **found})
    tree = codec.load(path, like=compressed)
    if not same_tree(compressed, tree):
        raise RuntimeError(f"{path} does not decode to the tree that was written into it")
    params = decode(tree)
    after, count, predictions, parts = score_on(task, params, task.test)
    agreement = None
    if predictions is not None and before.predictions is not None:
        agreement = float(np.mean(predictions == before.predictions))
    name = task.metric.removeprefix("-")
    size = Path(path).stat().st_size
    row = Row(
        method=method.label,
        before=before.test[name],
        after=after[name],
        difference=float(signed(after, task.metric) - signed(before.test, task.metric)),
        standard_error=paired_error(before.parts, parts, count),
        agreement=agreement,
        calibration=score_on(task, params, task.calibration).metrics[name],
        file_bytes=size,
        ratio=before.float_bytes / size,
        bits_per_weight=8 * size / before.n_params,
        seconds=seconds,
    )
    return Outcome(row, tree, info)
