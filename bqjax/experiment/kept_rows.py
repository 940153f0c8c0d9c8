"""Rows kept beside their files, with a fingerprint of all that they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bqjax._version import __version__
from bqjax.core.files import atomic_write
from bqjax.core.journal import digest
from bqjax.core.task import Task
from bqjax.experiment.config import Experiment
from bqjax.experiment.row import Row
from bqjax.methods.base import Method
from bqjax.methods.bins.method import BinAndQuant

__all__ = [
    "file_digest",
    "file_stem",
    "kept_row",
    "row_fingerprint",
    "search_name",
    "search_path",
    "task_fingerprint",
    "write_json",
]

_ROW_FIELDS = {field.name: field.type for field in dataclasses.fields(Row)}


def task_fingerprint(task: Task) -> str:
    """What a task's figures depend on: parameters, data and the names of its metrics, as hexadecimal digits."""
    parts = [digest(task.params), digest(list(task.calibration)), digest(list(task.test)), task.metric, task.rank_by]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def row_fingerprint(experiment: Experiment, method: Method, of_task: str) -> str | None:
    """None where the method's settings have no text that another run would know them by."""
    settings = repr(method)
    if " at 0x" in settings:  # an address; the next run has another
        return None
    parts = [of_task, settings, method.label, str(experiment.seed), experiment.coder, __version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def search_name(method: Method) -> str:
    """What a method's search is known by: methods of one name can share the measurements of a state file.

    A method whose measurements serve others than itself says so by a ``search_name`` of its own.
    """
    if isinstance(method, BinAndQuant):
        return repr((method.search, method.rules))
    return str(getattr(method, "search_name", method.label))


def search_path(folder: Path, experiment: Experiment, method: Method, of_task: str) -> Path:
    """Where a method's search keeps its measurements: methods with one search between them share a file.

    Those of another task or seed are another file.
    """
    search = "\0".join((of_task, str(experiment.seed), search_name(method)))
    return folder / f"{hashlib.sha256(search.encode()).hexdigest()[:12]}.jsonl"


def file_stem(label: str, fingerprint: str | None) -> str:
    """A name for a row's files: readable, and another one where anything differs."""
    slug = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:40] or "row"
    return f"{slug}-{fingerprint[:8] if fingerprint else hashlib.sha256(label.encode()).hexdigest()[:8] + '-new'}"


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_row(path: Path, compressed: Path, fingerprint: str) -> tuple[Row, str] | None:
    """The row that an earlier run left with its file, where both are whole and of this fingerprint."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["fingerprint"] != fingerprint or entry["sha256"] != file_digest(compressed):
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path, force=True) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
