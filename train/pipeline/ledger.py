"""What the files of a pipeline's stages weigh and lose, seed by seed and in the mean, as a table, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bqjax.core.files import atomic_write
from bqjax.experiment import Comparison, Entry, Reference, Row
from bqjax.report.pareto import pareto_plot
from bqjax.report.tables import Table, markdown, results_table

__all__ = ["Ledger", "ledger_table", "mean_comparison", "write_ledger"]


class Ledger(NamedTuple):
    """The rows of one seed.

    Attributes:
      seed: of the pass.
      before: what the rows are compared with: the float network of the first stage.
      entries: name of the stage and the entry of each method, in order.
    """

    seed: int
    before: Reference
    entries: tuple[tuple[str, Entry], ...]


def ledger_table(ledgers: Sequence[Ledger]) -> Table:
    """A line a stage and method: means over the seeds, and the difference of every seed.

    Args:
      ledgers: of the seeds, at least one, all of one pipeline.
    """
    table = results_table(mean_comparison(ledgers))
    rows = zip(*([entry.row for _, entry in ledger.entries] for ledger in ledgers), strict=True)
    differences = (", ".join(f"{100 * row.difference:+.2f}" if row else "failed" for row in seeds) for seeds in rows)
    each = ["", ", ".join("0.00" for _ in ledgers), *differences]
    return Table(
        "Ledger",
        (*table.columns, "difference, each seed"),
        [(*line, seeds) for line, seeds in zip(table.rows, each, strict=True)],
        f"{table.title}. {table.caption}",
    )


def mean_comparison(ledgers: Sequence[Ledger]) -> Comparison:
    """Means over the seeds as rows; one that failed for a seed is failed. Stages are families where there are several."""
    befores = [ledger.before for ledger in ledgers]
    several = len({stage for stage, _ in ledgers[0].entries}) > 1
    entries = []
    for i, (stage, entry) in enumerate(ledgers[0].entries):
        rows = [ledger.entries[i][1].row for ledger in ledgers]
        errors = [ledger.entries[i][1].error for ledger in ledgers]
        label = f"{stage}, {entry.label}" if several else entry.label
        mean = _mean_row(label, [row for row in rows if row is not None]) if None not in rows else None
        error = next((error for error in errors if error), None)
        entries.append(Entry(label=label, settings=entry.settings, row=mean, error=error))
    before = befores[0]._replace(
        test={"accuracy": statistics.mean(b.test["accuracy"] for b in befores)},
        calibration={"accuracy": statistics.mean(b.calibration["accuracy"] for b in befores)},
        float_bytes=round(statistics.mean(b.float_bytes for b in befores)),
        zstd_bytes=round(statistics.mean(b.zstd_bytes for b in befores)),
    )
    seeds = ", ".join(str(ledger.seed) for ledger in ledgers)
    name = f"Means over the seeds {seeds}" if len(ledgers) > 1 else f"Seed {seeds}"
    data = "test images", "held-out training images"
    return Comparison(task_name=name, metric="accuracy", data=data, before=before, entries=tuple(entries))


def _mean_row(label: str, rows: Sequence[Row]) -> Row:
    """One seed's row as it is; of several the means, without a standard error, since theirs would not be that of a mean."""
    numbers = ("before", "after", "difference", "calibration", "ratio", "bits_per_weight", "seconds")
    figures: dict[str, Any] = {name: statistics.mean(getattr(row, name) for row in rows) for name in numbers}
    agreements = [row.agreement for row in rows if row.agreement is not None]
    return Row(
        method=label,
        standard_error=rows[0].standard_error if len(rows) == 1 else None,
        agreement=statistics.mean(agreements) if agreements else None,
        file_bytes=round(statistics.mean(row.file_bytes for row in rows)),
        **figures,
    )


def write_ledger(folder: Path, ledgers: Sequence[Ledger]) -> str:
    """Writes ``ledger.md``, ``ledger.csv`` and ``ledger.json``, the last two a record a row and seed, in full precision; and
    ``pareto.png`` and ``pareto.svg``, accuracy against bytes of the means.

    Returns:
      The table as Markdown.
    """
    records = []
    for ledger in ledgers:
        of_seed = {"seed": ledger.seed, "float_bytes": ledger.before.float_bytes}
        for stage, entry in ledger.entries:
            row = {} if entry.row is None else dataclasses.asdict(entry.row)
            row.pop("method", None)
            said = {"stage": stage, "method": entry.label, "error": entry.error, "settings": entry.settings}
            records.append(of_seed | said | row)
    fields = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    table = markdown(ledger_table(ledgers))
    contents = {
        "ledger.md": table.encode(),
        "ledger.csv": text.getvalue().encode(),
        "ledger.json": json.dumps(records, indent=1, allow_nan=False).encode() + b"\n",
    }
    if (means := mean_comparison(ledgers)).rows:
        png, svg = pareto_plot(means)
        contents |= {"pareto.png": png, "pareto.svg": svg.encode()}
    for name, content in contents.items():
        with atomic_write(folder / name, force=True) as file:
            file.write(content)
    return table
