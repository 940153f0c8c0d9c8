"""What ``bqjax compare`` does; :mod:`bqjax.cli.arguments` parses its arguments."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import jax
from rich.console import Console

from bqjax.core.files import atomic_write
from bqjax.core.progress import Progress
from bqjax.experiment import Entry, Experiment, Outcome
from bqjax.experiment import run as run_experiment
from bqjax.experiment.kept_rows import task_fingerprint
from bqjax.report.console import progress_bar, say
from bqjax.report.experiment import PAGE, RESULT_NAMES, experiment_files, row_details
from bqjax.report.micro import stored_table
from bqjax.report.tables import results_table, rich_table

__all__ = ["compare_methods"]

ROWS = "rows"


def compare_methods(
    experiment: Experiment,
    data: Path | None,
    out: Path,
    *,
    command: str,
    force: bool = False,
    parallel: bool = False,
    console: Console,
) -> None:
    """Runs the rows of an experiment that are not done, and writes table, picture and page into a folder.

    The page shows the search and the bins of the first row, too.

    The same command goes on where it was interrupted; a config with another method gets its row beside those that are there.
    ``parallel`` runs rows side by side, one on each device.

    Raises:
      ValueError: rows failed, after everything was written; the folder holds results of another task.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: --out names a folder")
    earlier = None if force else _earlier(out)
    with progress_bar(console, "preparing") as progress:
        task = experiment.make_task(data, progress)
    if earlier is not None and earlier != task_fingerprint(task):
        raise ValueError(f"{out} holds a comparison on another task: pass --force to overwrite it, or name another --out")

    if task.note:
        say(console, task.note)

    def progress_for(label: str) -> contextlib.AbstractContextManager[Progress | None]:
        say(console, f"running {label}")
        return contextlib.nullcontext() if devices else progress_bar(console, label)  # one bar fits the screen

    def done(entry: Entry, outcome: Outcome) -> None:
        if entry.file is not None and (entry.label == first or outcome.info is not None):
            files = stored_table(out / ROWS / entry.file, entry.file)
            with atomic_write(_details(out, entry), force=True) as file:
                file.write(row_details(task, outcome, files).encode())

    first = experiment.methods[0].label
    devices = jax.local_devices() if parallel else None
    found = run_experiment(experiment, out / ROWS, task=task, force=force, devices=devices, progress_for=progress_for, done=done)
    details = _details(out, found.entries[0])
    shown = details.read_text(encoding="utf-8") if found.entries[0].row and details.is_file() else ""
    for name, content in experiment_files(found, command, shown).items():
        with atomic_write(out / name, force=True) as file:
            file.write(content)
    table = results_table(found)
    console.print(rich_table(table._replace(caption="")))
    say(console, table.caption)
    kept = sum(entry.kept for entry in found.entries)
    say(console, f"{len(found.rows)} rows, {kept} of them kept from earlier runs; wrote {out / PAGE}")
    if found.failed:
        raise ValueError(
            f"{len(found.failed)} of {len(found.entries)} rows failed: "
            + "; ".join(f"{entry.label} ({entry.error})" for entry in found.failed)
            + f". The others are written; details are in {out / ROWS}, and the same command tries these again"
        )


def _details(out: Path, entry: Entry) -> Path:
    """Where what is to be seen of a row is kept for the page, beside its file."""
    return out / ROWS / f"{(entry.file or '').removesuffix('.bq.safetensors')}.details.html"


def _earlier(out: Path) -> str | None:
    """The fingerprint of the task whose results stand in the folder, or None."""
    there = [out / name for name in RESULT_NAMES if (out / name).exists()]
    if not there:
        return None
    try:
        return str(json.loads((out / "compare.json").read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{there[0]} exists: pass --force to overwrite the results in {out}, or name another --out") from error
