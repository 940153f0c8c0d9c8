"""Runs a method on a task and measures what came out, from the file that was written.

Every figure of a :class:`Row` is taken on ``task.test`` from parameters that were decoded from the file; methods
see ``task.calibration`` only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax import codec
from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.scoring import paired_error, score_on
from bqjax.core.task import Task, signed
from bqjax.experiment.row import Reference, Row
from bqjax.methods.base import Method
from bqjax.methods.bins import SearchInfo
from bqjax.methods.bins.method import BinAndQuant

__all__ = ["Outcome", "run", "same_tree", "search_name"]


class Outcome(NamedTuple):
    """A finished run: its row, the tree as read back from the file, and the search's report."""

    row: Row
    tree: Any
    info: SearchInfo | None


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
