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
from bqjax.experiment.compare import Comparison, Entry
from bqjax.experiment.row import Reference, Row
from bqjax.report.compare_plot import pareto_plot
from bqjax.report.tables import Table, markdown

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
    befores = [ledger.before for ledger in ledgers]
    size, accuracy = statistics.mean(b.float_bytes for b in befores), statistics.mean(b.test["accuracy"] for b in befores)
    small = statistics.mean(b.zstd_bytes for b in befores)
    zeros = ", ".join("0.00" for _ in ledgers)
    lines = [
        ("float32, what rows are compared with", f"{size:,.0f}", "1.00", f"{100 * accuracy:.2f}", "", ""),
        ("the same, zstd -19 (lossless)", f"{small:,.0f}", f"{size / small:.2f}", f"{100 * accuracy:.2f}", "0.00", zeros),
    ]
    for i, (stage, entry) in enumerate(ledgers[0].entries):
        rows = [ledger.entries[i][1].row for ledger in ledgers]
        done = [row for row in rows if row is not None]
        label = f"{stage}: {entry.label}"
        if len(done) < len(rows):
            lines.append((label, "failed", "", "", "", ""))
            continue
        n_bytes = statistics.mean(row.file_bytes for row in done)
        difference = statistics.mean(row.difference for row in done)
        lines.append(
            (
                label,
                f"{n_bytes:,.0f}",
                f"{size / n_bytes:.2f}",
                f"{100 * statistics.mean(row.after for row in done):.2f}",
                f"{100 * difference:+.2f}",
                ", ".join(f"{100 * row.difference:+.2f}" for row in done),
            )
        )
    columns = ("stage: stored as", "file bytes", "ratio", "accuracy %", "difference, points", "each seed")
    seeds = ", ".join(str(ledger.seed) for ledger in ledgers)
    caption = (
        f"Means over the seeds {seeds}; accuracy on {befores[0].n_test:,} test images of what the file decodes to. Ratio "
        f"and difference: to the float network of the first line. Methods saw {befores[0].n_calibration:,} held-out training "
        "images at most."
    )
    return Table("Ledger", columns, lines, caption)


def mean_comparison(ledgers: Sequence[Ledger]) -> Comparison:
    """The rows that no seed lacks, means over the seeds, as a comparison; stages are its families where there are several."""
    befores = [ledger.before for ledger in ledgers]
    several = len({stage for stage, _ in ledgers[0].entries}) > 1
    entries = []
    for i, (stage, entry) in enumerate(ledgers[0].entries):
        rows = [ledger.entries[i][1].row for ledger in ledgers]
        done = [row for row in rows if row is not None]
        if len(done) < len(rows):
            continue
        label = f"{stage}, {entry.label}" if several else entry.label
        figures: dict[str, Any] = {
            name: statistics.mean(getattr(row, name) for row in done) for name in ("after", "difference", "calibration", "ratio")
        }
        size = round(statistics.mean(row.file_bytes for row in done))
        mean: Row = dataclasses.replace(done[0], method=label, file_bytes=size, standard_error=None, **figures)
        entries.append(Entry(label=label, settings=entry.settings, row=mean))
    before = befores[0]._replace(
        test={"accuracy": statistics.mean(b.test["accuracy"] for b in befores)},
        float_bytes=round(statistics.mean(b.float_bytes for b in befores)),
        zstd_bytes=round(statistics.mean(b.zstd_bytes for b in befores)),
    )
    seeds = ", ".join(str(ledger.seed) for ledger in ledgers)
    data = f"{before.n_test:,} test images", f"{before.n_calibration:,} held-out training images"
    name = f"Means over the seeds {seeds}" if len(ledgers) > 1 else f"Seed {seeds}"
    return Comparison(task_name=name, metric="accuracy", data=data, before=before, entries=tuple(entries), fingerprint="")


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
