"""All methods of an experiment, a row each: every row is a file, read back, decoded and scored on the test data.

A row that is done is kept beside its file, with a fingerprint of everything it depends on, and is not run again; one that fails
says so in its place and takes no other with it. Rows can run side by side, each on a device of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from bqjax.core.files import atomic_write
from bqjax.core.journal import digest
from bqjax.core.progress import Progress
from bqjax.core.task import Task
from bqjax.experiment.config import Experiment
from bqjax.experiment.entry import Comparison, Entry
from bqjax.experiment.kept_rows import (
    file_digest,
    file_stem,
    kept_row,
    row_fingerprint,
    search_path,
    task_fingerprint,
    write_json,
)
from bqjax.experiment.row import Reference, reference
from bqjax.experiment.runner import Outcome, run_row
from bqjax.experiment.side_by_side import side_by_side
from bqjax.methods.base import Method

__all__ = ["run"]

_SHOWN = 300  # letters of an error in tables
ProgressFor = Callable[[str], contextlib.AbstractContextManager[Progress | None]]
Done = Callable[[Entry, Outcome], None]


def run(
    experiment: Experiment,
    folder: Path,
    *,
    task: Task | None = None,
    data_dir: Path | None = None,
    force: bool = False,
    before: Reference | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress_for: ProgressFor | None = None,
    done: Done | None = None,
) -> Comparison:
    """Runs every method of an experiment that has no kept row, and gives all rows.

    Args:
      experiment: what to run.
      folder: keeps rows, compressed files and, under ``search/``, measurements of searches; made where missing. The error of a row
        that failed is kept beside it in full.
      task: that of the experiment, where it has been made already.
      data_dir: what it is made from otherwise.
      force: run kept rows again.
      before: what rows are compared with, where that is another network than the task's own, on the same examples.
      devices: run as many rows at a time as there are devices, each on one of its own, which must have room for it: methods of one
        search, which share its measurements, one after the other on the same. None runs row by row, and a search spreads its
        candidates over all devices. The numbers are the same.
      progress_for: ``progress_for(label)`` gives a context with the progress of one row.
      done: called with each row that was run and not kept.

    Raises:
      ValueError: the network cannot be scored uncompressed; no devices. What a method raises is kept in its entry.
    """
    if devices is not None and not len(devices):
        raise ValueError("no devices to run rows on")
    task = experiment.make_task(data_dir) if task is None else task
    of_task = task_fingerprint(task)
    if before is None:
        before = reference(task)
    else:
        other = digest([before.predictions, before.parts, np.int64(before.float_bytes), np.int64(before.n_params)])
        of_task = hashlib.sha256(f"{of_task}\0{other}".encode()).hexdigest()[:32]
    searches = folder / "search"
    searches.mkdir(parents=True, exist_ok=True)
    rows = _Rows(experiment, task, folder, before, of_task, force, progress_for or _silent, done)
    if devices is None:
        entries = [rows.entry(method) for method in experiment.methods]
    else:
        sharing: dict[Path, list[Method]] = {}
        for method in experiment.methods:
            sharing.setdefault(rows.search_path(method), []).append(method)
        found = {entry.label: entry for entry in side_by_side(list(sharing.values()), rows.entry, devices)}
        entries = [found[method.label] for method in experiment.methods]
    if all(entry.row is not None for entry in entries):
        shutil.rmtree(searches)
    return Comparison.of(task, before, entries, of_task)


@dataclass(frozen=True)
class _Rows:
    """What all rows of an experiment share."""

    experiment: Experiment
    task: Task
    folder: Path
    before: Reference
    of_task: str
    force: bool
    progress_for: ProgressFor
    done: Done | None

    def search_path(self, method: Method) -> Path:
        return search_path(self.folder / "search", self.experiment, method, self.of_task)

    def entry(self, method: Method) -> Entry:
        """The kept row, or else a new one."""
        fingerprint = row_fingerprint(self.experiment, method, self.of_task)
        stem = file_stem(method.label, fingerprint)
        record, compressed, failure = (self.folder / f"{stem}.{ending}" for ending in ("json", "bq.safetensors", "error.txt"))
        entry = Entry(label=method.label, settings=repr(method), file=compressed.name)
        if fingerprint and not self.force and (found := kept_row(record, compressed, fingerprint)):
            return dataclasses.replace(entry, row=found[0], sha256=found[1], kept=True)
        record.unlink(missing_ok=True)  # the file below is about to be another one
        try:
            outcome = self._outcome(method, compressed)
        except Exception as error:  # whatever a method does wrong costs its own row, not those of the others
            with atomic_write(failure, force=True) as file:
                file.write(traceback.format_exc().encode())
            compressed.unlink(missing_ok=True)
            return dataclasses.replace(entry, file=None, error=_one_line(error))
        entry = dataclasses.replace(entry, row=outcome.row, sha256=file_digest(compressed))
        if self.done is not None:
            self.done(entry, outcome)
        if fingerprint:
            write_json(record, {"fingerprint": fingerprint, "sha256": entry.sha256, "row": dataclasses.asdict(outcome.row)})
        failure.unlink(missing_ok=True)
        return entry

    def _outcome(self, method: Method, path: Path) -> Outcome:
        with self.progress_for(method.label) as progress:
            return run_row(
                self.task,
                method,
                path,
                self.before,
                key=jax.random.key(self.experiment.seed),
                coder=self.experiment.coder,
                force=True,
                state_path=self.search_path(method),
                progress=progress,
            )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return shown if isinstance(error, ValueError) and shown else f"{type(error).__name__}: {shown}"


def _silent(label: str) -> contextlib.AbstractContextManager[Progress | None]:
    del label
    return contextlib.nullcontext()
