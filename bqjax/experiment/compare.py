"""Many methods on one task, a row each: every row is a file, read back, decoded and scored on the test data.

Methods see the calibration data only. A row that is done is kept beside its file, with a fingerprint of everything it
depends on, and is not run again; one that fails says so in its place and takes no other with it. Rows can run side by side, each on
a device of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import queue
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from bqjax.core.files import atomic_write
from bqjax.core.journal import digest
from bqjax.core.progress import Progress
from bqjax.core.task import Task
from bqjax.experiment import runner as experiment
from bqjax.experiment.config import CompareConfig
from bqjax.experiment.kept_rows import file_digest, file_stem, kept_row, row_fingerprint, task_fingerprint, write_json
from bqjax.experiment.row import Reference, Row, reference
from bqjax.methods.base import Method

__all__ = ["Comparison", "Entry", "pareto_front", "run"]

_SHOWN = 300  # letters of an error in tables


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method's line: its row and file, or why there is none.

    Attributes:
      label: of the method.
      settings: its ``repr``.
      row: the figures, or None where it failed.
      file: name of the compressed file within the folder of the comparison, or None.
      sha256: checksum of that file.
      error: one line, or None.
      kept: whether the row is from an earlier run.
    """

    label: str
    settings: str
    row: Row | None = None
    file: str | None = None
    sha256: str | None = None
    error: str | None = None
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison.

    Attributes:
      task_name, metric: of the task.
      data: names of the test data and of the calibration data.
      before: the uncompressed network.
      entries: one a method, in the config's order.
      fingerprint: of the task: its parameters, data and metrics.
    """

    task_name: str
    metric: str
    data: tuple[str, str]
    before: Reference
    entries: tuple[Entry, ...]
    fingerprint: str

    @property
    def rows(self) -> list[Row]:
        """The rows of the methods that did not fail."""
        return [entry.row for entry in self.entries if entry.row is not None]

    @property
    def failed(self) -> list[Entry]:
        """The methods that failed."""
        return [entry for entry in self.entries if entry.row is None]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(bytes, value)`` that no other beats: none is as small and as good, and better in one.

    In ascending order of bytes. Of points that are equal the first is taken.

    >>> pareto_front([(100, 0.9), (50, 0.8), (120, 0.85), (50, 0.8)])
    [1, 0]
    """
    front: list[int] = []
    best = -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return shown if isinstance(error, ValueError) and shown else f"{type(error).__name__}: {shown}"


def run(
    config: CompareConfig,
    task: Task,
    folder: Path,
    *,
    force: bool = False,
    before: Reference | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress_for: Callable[[str], contextlib.AbstractContextManager[Progress | None]] | None = None,
) -> Comparison:
    """Runs every method of a config that has no kept row, and gives all rows.

    Args:
      config: what to compare.
      task: from ``config.task``.
      folder: keeps rows, compressed files and measurements of searches; made where missing. The error of a row that failed
        is kept beside it in full.
      force: run kept rows again.
      before: what rows are compared with, where that is another network than the task's own, on the same examples.
      devices: run as many rows at a time as there are devices, each on one of its own, which must have room for it: methods of one
        search, which share its measurements, one after the other on the same. None runs row by row, and a search spreads its
        candidates over all devices. The numbers are the same.
      progress_for: ``progress_for(label)`` gives a context with the progress of one row.

    Raises:
      ValueError: the network cannot be scored uncompressed; no devices. What a method raises is kept in its entry.
    """
    if devices is not None and not len(devices):
        raise ValueError("no devices to run rows on")
    of_task = task_fingerprint(task)
    if before is None:
        before = reference(task)
    else:
        other = digest([before.predictions, before.parts, np.int64(before.float_bytes), np.int64(before.n_params)])
        of_task = hashlib.sha256(f"{of_task}\0{other}".encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(config.seed)
    states = {method.label: _state_path(config, method, folder, of_task) for method in config.methods}

    def row(method: Method) -> Entry:
        fingerprint = row_fingerprint(config, method, of_task)
        stem = file_stem(method.label, fingerprint)
        record, compressed, failure = (folder / f"{stem}.{ending}" for ending in ("json", "bq.safetensors", "error.txt"))
        entry = Entry(label=method.label, settings=repr(method), file=compressed.name)
        if fingerprint and not force and (found := kept_row(record, compressed, fingerprint)):
            return dataclasses.replace(entry, row=found[0], sha256=found[1], kept=True)
        record.unlink(missing_ok=True)  # the file below is about to be another one
        try:
            with (progress_for or _silent)(method.label) as progress:
                made = experiment.run(
                    task,
                    method,
                    compressed,
                    before,
                    key=key,
                    coder=config.coder,
                    force=True,
                    state_path=str(states[method.label]),
                    progress=progress,
                    metadata={"task": task.name, "method": method.label},
                ).row
        except Exception as error:  # whatever a method does wrong costs its own row, not those of the others
            with atomic_write(failure, force=True) as file:
                file.write(traceback.format_exc().encode())
            compressed.unlink(missing_ok=True)
            return dataclasses.replace(entry, file=None, error=_one_line(error))
        sha256 = file_digest(compressed)
        if fingerprint:
            write_json(record, {"fingerprint": fingerprint, "sha256": sha256, "row": dataclasses.asdict(made)})
        failure.unlink(missing_ok=True)
        return dataclasses.replace(entry, row=made, sha256=sha256)

    if devices is None:
        entries = [row(method) for method in config.methods]
    else:
        sharing: dict[Path, list[Method]] = {}
        for method in config.methods:
            sharing.setdefault(states[method.label], []).append(method)
        done = {entry.label: entry for entry in _side_by_side(list(sharing.values()), row, devices)}
        entries = [done[method.label] for method in config.methods]
    if all(entry.row is not None for entry in entries):
        for state in states.values():
            state.unlink(missing_ok=True)
    return Comparison(
        task_name=task.name,
        metric=task.metric,
        data=(task.test_name, task.calibration_name),
        before=before,
        entries=tuple(entries),
        fingerprint=of_task,
    )


def _state_path(config: CompareConfig, method: Method, folder: Path, of_task: str) -> Path:
    """Methods with one search between them share its measurements. Those of another task or seed are another file."""
    search = "\0".join((of_task, str(config.seed), experiment.search_name(method)))
    return folder / f"search-{hashlib.sha256(search.encode()).hexdigest()[:12]}.jsonl"


def _side_by_side(groups: Sequence[Sequence[Method]], row: Callable[[Method], Entry], devices: Sequence[jax.Device]) -> list[Entry]:
    """Rows of all groups, a group at a time on each device."""
    free: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def rows(group: Sequence[Method]) -> list[Entry]:
        device = free.get()
        try:
            with jax.default_device(device):  # of this thread only
                return [row(method) for method in group]
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(max_workers=len(devices))
    try:
        return [entry for future in [pool.submit(rows, group) for group in groups] for entry in future.result()]
    finally:
        pool.shutdown(cancel_futures=True)  # of an interrupt, rows that have begun are finished and kept


def _silent(label: str) -> contextlib.AbstractContextManager[Progress | None]:
    del label
    return contextlib.nullcontext()
