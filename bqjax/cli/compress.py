"""What the commands of ``bqjax`` do; :mod:`bqjax.cli.arguments` parses their arguments."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import jax
from rich.console import Console

from bqjax import codec
from bqjax.core.files import atomic_write
from bqjax.experiment import runner as experiment
from bqjax.experiment.config import ExperimentConfig
from bqjax.experiment.row import reference
from bqjax.methods.base import Method
from bqjax.report.console import progress_bar, say
from bqjax.report.html import search_report
from bqjax.report.tables import file_table, markdown, results_table, rich_table, search_table

__all__ = ["compress_experiment"]


def compress_experiment(
    config: ExperimentConfig,
    data: Path | None,
    out: Path,
    *,
    command: str,
    report: Path | None = None,
    table: Path | None = None,
    force: bool = False,
    console: Console,
) -> None:
    """Runs an experiment: searches, writes the file, scores what it decodes to, prints and writes the tables.

    Interrupted, it keeps its measurements beside ``out`` and goes on from them when run again.
    """
    for path in (out, report, table):
        if path is not None and path.exists() and not force:
            raise ValueError(f"{path} exists: pass --force to overwrite it")
    if config.data is not None and data is None:
        raise ValueError(f"--data is missing: it must name a folder with {config.data}")
    with progress_bar(console, "preparing") as progress:
        task = config.task(data, progress)
        before = reference(task)
    key = jax.random.key(config.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    states: set[Path] = set()

    def run(method: Method, path: Path, overwrite: bool) -> experiment.Outcome:
        # Methods with one search between them share its measurements.
        search = hashlib.sha256(experiment.search_name(method).encode()).hexdigest()
        state = out.with_name(f"{out.name}.{search[:8]}.jsonl")
        states.add(state)
        with progress_bar(console, method.label) as progress:
            return experiment.run(
                task,
                method,
                path,
                before,
                key=key,
                coder=config.coder,
                force=overwrite,
                state_path=str(state),
                progress=progress,
                metadata={"task": task.name, "method": method.label},
            )

    with tempfile.TemporaryDirectory(prefix=".bqjax-", dir=out.parent) as scratch:
        kept = Path(scratch) / "kept.bq.safetensors"
        outcome = run(config.method, kept, False)
        rows = [outcome.row, *(run(m, Path(scratch) / "beside.bq.safetensors", True).row for m in config.beside)]
        # The file takes its name last: where it stood there before, the command could not be run again after an interruption.
        kept.replace(out)

    names = task.test_name, task.calibration_name
    results = results_table(task.name, task.metric, before, rows, names)
    files = file_table(codec.inspect(out), str(out.name))
    for shown in ([search_table(outcome.info)] if outcome.info else []) + [files, results]:
        console.print(rich_table(shown))
    if table is not None:
        with atomic_write(table, force=force) as file:
            file.write(f"`{command}`\n\n{markdown(results)}".encode())
    if report is not None:
        html = search_report(task, before, outcome, rows, files, command, names)
        with atomic_write(report, force=force) as file:
            file.write(html.encode())
    for state in states:
        state.unlink(missing_ok=True)
    say(console, f"wrote {out}" + (f" and {report}" if report else ""))
