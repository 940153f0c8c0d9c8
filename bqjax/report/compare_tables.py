"""A comparison as a table, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

from bqjax._version import __version__
from bqjax.experiment.compare import Comparison, pareto_front
from bqjax.experiment.row import Row
from bqjax.report.tables import Table, results_table

__all__ = ["compare_csv", "compare_json", "compare_records", "compare_table", "front_labels"]

_COLUMNS = [field.name for field in dataclasses.fields(Row) if field.name != "method"]


def front_labels(comparison: Comparison) -> list[str]:
    """Labels of the rows that no other row beats in both bytes and the metric, smallest file first."""
    rows, sign = comparison.rows, -1 if comparison.metric.startswith("-") else 1
    return [rows[i].method for i in pareto_front([(row.file_bytes, sign * row.after) for row in rows])]


def compare_table(comparison: Comparison) -> Table:
    """The results table, a line a method in the config's order, with a mark on the rows of the front."""
    table = results_table(comparison.task_name, comparison.metric, comparison.before, comparison.rows, comparison.data)
    front = front_labels(comparison)
    references, lines = table.rows[:2], {line[0]: line for line in table.rows[2:]}
    blank = ("",) * (len(table.columns) - 2)
    shown = [(*line, "") for line in references]
    for entry in comparison.entries:
        if entry.row is None:
            shown.append((entry.label, "failed", *blank, ""))
        else:
            shown.append((*lines[entry.label], "yes" if entry.label in front else ""))
    caption = (
        f"{table.caption} Best: no other row is both as small and as good. Rows that share a search have its seconds in the first."
    )
    for entry in comparison.failed:
        caption += f" Failed: {entry.label}: {entry.error}."
    return Table(table.title, (*table.columns, "best"), shown, caption)


def compare_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A flat dict a method; None where a value does not exist."""
    front = front_labels(comparison)
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
