"""Runs one method on a task and measures what came out, from the file that was written.

Every figure of a :class:`Row` is taken from parameters that were decoded from the file; methods see ``task.calibration`` only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core.agreement import agreement_task
from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.scoring import paired_error, score_on
from bqjax.core.task import Task, signed
from bqjax.experiment.row import Reference, Row
from bqjax.experiment.storage import storage_of, write_checked
from bqjax.methods.base import Method

__all__ = ["Outcome", "run_row"]


class Outcome(NamedTuple):
    """A finished row, the tree as read back from the file, and the search's report (None where there was no search)."""

    row: Row
    tree: Any
    info: Any


def run_row(
    task: Task,
    method: Method,
    path: str | os.PathLike[str],
    before: Reference,
    *,
    key: jax.Array,
    coder: str = "auto",
    force: bool = False,
    state_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Outcome:
    """Compresses, writes the file, reads it back, decodes, and scores what was decoded on the test data.

    Args:
      task: the network and its data.
      method: what compresses it.
      path: the file.
      before: from :func:`bqjax.experiment.reference`.
      key: a ``jax.random`` key.
      coder: see :func:`bqjax.codec.save`.
      force: overwrite an existing file.
      state_path: keeps a search's measurements, so that it can be interrupted.
      progress: called as the method goes on.
      metadata: strings to keep in the file, besides the names of task and method.

    Raises:
      ValueError: the file exists; see also the method and :func:`bqjax.codec.save`.
      RuntimeError: the file does not decode to what was written.
    """
    if Path(path).exists() and not force:
        raise ValueError(f"{os.fspath(path)} exists: pass force=True to overwrite it")  # before a search of hours
    start = time.monotonic()
    state = None if state_path is None else os.fspath(state_path)
    compressed, info, found = method.compress(agreement_task(task), key=key, state_path=state, progress=progress)
    seconds = time.monotonic() - start
    about = {"task": task.name, "method": method.label, **(metadata or {}), **found}
    tree = write_checked(storage_of(task), path, compressed, info=info, coder=coder, force=force, metadata=about)
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
