"""Many methods on one task, a row each: every row is a file, read back, decoded and scored on the test data.

Methods see the calibration data only. A row that is done is kept beside its file, with a fingerprint of everything it
depends on, and is not run again; one that fails says so in its place and takes no other with it. Rows can run side by side, each on
a device of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import queue
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bqjax import experiment
from bqjax._version import __version__
from bqjax.experiment import Reference, Row
from bqjax.files import atomic_write
from bqjax.methods import Method
from bqjax.planned import BudgetConfig
from bqjax.progress import Progress
from bqjax.sensitivity.journal import digest
from bqjax.task import Task

__all__ = ["CompareConfig", "Comparison", "Entry", "pareto_front", "run", "task_fingerprint"]

_ROW_FIELDS = {field.name: field.type for field in dataclasses.fields(Row)}
_SHOWN = 300  # letters of an error in tables


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of ``bqjax compare --config``.

    Attributes:
      task: ``task(data_dir, progress) -> Task``.
      methods: what is compared, in the order of the table; labels must differ.
      seed: of every random draw; all methods start from the same key.
      coder: of the indices, see :mod:`bqjax.codec`.
      data: what the folder of ``--data`` must hold; None where the task needs none.
      budget: what layers are offered where ``bqjax compress`` plans for this task.
    """

    task: Callable[[Path | None, Progress | None], Task]
    methods: Sequence[Method]
    seed: int = 0
    coder: str = "auto"
    data: str | None = None
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        labels = [method.label for method in self.methods]
        if not labels:
            raise ValueError("the comparison has no methods")
        for label in labels:
            if not label.strip():
                raise ValueError("a method's label is empty: give it one by label=")
            if labels.count(label) > 1:
                raise ValueError(f"two methods are labelled {label!r}: give one of them another label=")


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


def task_fingerprint(task: Task) -> str:
    """What a task's figures depend on: parameters, data and the names of its metrics, as hexadecimal digits."""
    parts = [digest(task.params), digest(list(task.calibration)), digest(list(task.test)), task.metric, task.rank_by]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _row_fingerprint(config: CompareConfig, method: Method, of_task: str) -> str | None:
    """None where the method's settings have no text that another run would know them by."""
    settings = repr(method)
    if " at 0x" in settings:  # an address; the next run has another
        return None
    parts = [of_task, settings, method.label, str(config.seed), config.coder, __version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _stem(label: str, fingerprint: str | None) -> str:
    """A name for a row's files: readable, and another one where anything differs."""
    slug = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:40] or "row"
    return f"{slug}-{fingerprint[:8] if fingerprint else hashlib.sha256(label.encode()).hexdigest()[:8] + '-new'}"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(path: Path, compressed: Path, fingerprint: str) -> tuple[Row, str] | None:
    """The row that an earlier run left with its file, where both are whole and of this fingerprint."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["fingerprint"] != fingerprint or entry["sha256"] != _file_digest(compressed):
            return None
        values = entry["row"]
        if values.keys() != _ROW_FIELDS.keys():
            return None
        for name, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            optional = "None" in str(_ROW_FIELDS[name]) and value is None
            if not (isinstance(value, str) if name == "method" else number or optional):
                return None
        return Row(**values), entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, cut short or damaged: the row is done again


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
        before = experiment.reference(task)
    else:
        other = digest([before.predictions, before.parts, np.int64(before.float_bytes), np.int64(before.n_params)])
        of_task = hashlib.sha256(f"{of_task}\0{other}".encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(config.seed)
    states = {method.label: _state_path(config, method, folder, of_task) for method in config.methods}

    def row(method: Method) -> Entry:
        fingerprint = _row_fingerprint(config, method, of_task)
        stem = _stem(method.label, fingerprint)
        record, compressed, failure = (folder / f"{stem}.{ending}" for ending in ("json", "bq.safetensors", "error.txt"))
        entry = Entry(label=method.label, settings=repr(method), file=compressed.name)
        if fingerprint and not force and (found := _kept(record, compressed, fingerprint)):
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
        sha256 = _file_digest(compressed)
        if fingerprint:
            _write_json(record, {"fingerprint": fingerprint, "sha256": sha256, "row": dataclasses.asdict(made)})
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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path, force=True) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
