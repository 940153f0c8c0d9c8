"""An experiment as CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

from bqjax._version import __version__
from bqjax.experiment.entry import Comparison
from bqjax.experiment.row import Row

__all__ = ["compare_csv", "compare_json", "compare_records"]

_COLUMNS = [field.name for field in dataclasses.fields(Row) if field.name != "method"]


def compare_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A flat dict a method; None where a value does not exist."""
    front = comparison.front
    records = []
    for entry in comparison.entries:
        figures = {name: None if entry.row is None else getattr(entry.row, name) for name in _COLUMNS}
        records.append(
            {
                "method": entry.label,
                **figures,
                "best": entry.label in front,
                "file": entry.file,
                "sha256": entry.sha256,
                "settings": entry.settings,
                "error": entry.error,
            }
        )
    return records


def compare_csv(comparison: Comparison) -> str:
    """The records as CSV, numbers in full precision, empty where there is no value."""
    records, out = compare_records(comparison), io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def compare_json(comparison: Comparison, command: str) -> str:
    """The records with what they were measured on; standard JSON."""
    before = comparison.before
    content = {
        "command": command,
        "version": __version__,
        "task": comparison.task_name,
        "fingerprint": comparison.fingerprint,
        "metric": comparison.metric,
        "test_data": comparison.data[0],
        "calibration_data": comparison.data[1],
        "n_test": before.n_test,
        "n_calibration": before.n_calibration,
        "n_params": before.n_params,
        "float_bytes": before.float_bytes,
        "zstd_bytes": before.zstd_bytes,
        "test": dict(before.test),
        "calibration": dict(before.calibration),
        "rows": compare_records(comparison),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
