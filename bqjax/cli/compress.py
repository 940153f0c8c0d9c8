"""What ``bqjax compress`` does; :mod:`bqjax.cli.compress_arguments` parses its arguments."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from bqjax.cli.compress_budget import Budget, plan_within
from bqjax.cli.micro_summary import micro_summary
from bqjax.core.files import atomic_write
from bqjax.core.task import Task
from bqjax.experiment import Comparison, Entry, Experiment, reference, run_row
from bqjax.experiment.kept_rows import file_digest, search_path, task_fingerprint
from bqjax.methods.base import Method
from bqjax.report.console import progress_bar, say
from bqjax.report.experiment import experiment_page, row_details, table_text
from bqjax.report.micro import stored_table
from bqjax.report.tables import results_table, rich_table, search_table
from bqjax.tflite.micro import is_micro

__all__ = ["Outputs", "compress_by_plan", "compress_experiment", "compress_within"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a command writes: the file, and where they are wanted a report and a table, which show the command."""

    out: Path
    report: Path | None = None
    table: Path | None = None
    force: bool = False
    command: str

    def check(self, *others: Path) -> None:
        """Raises ``ValueError`` where one of them exists and must not be overwritten."""
        for path in (self.out, *others, self.report, self.table):
            if path is not None and path.exists() and not self.force:
                raise ValueError(f"{path} exists: pass --force to overwrite it")


def compress_experiment(
    experiment: Experiment, data: Path | None, outputs: Outputs, console: Console, *, task: Task | None = None
) -> None:
    """Runs the first method of an experiment: writes the file, scores what it decodes to, prints and writes the tables.

    Interrupted, it keeps its measurements in a folder beside the file and goes on from them when run again.

    Args:
      experiment: of which the first method is run.
      data: folder of the task's data.
      outputs: what is written.
      console: shows tables and progress.
      task: that of the experiment, where it has been made already.
    """
    outputs.check()
    if task is None:
        with progress_bar(console, "preparing") as progress:
            task = experiment.make_task(data, progress)
    if task.note:
        say(console, task.note)
    before, method, out = reference(task), experiment.methods[0], outputs.out
    searches = out.with_name(f"{out.name}.search")
    searches.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".bqjax-", dir=out.parent) as scratch,
            progress_bar(console, method.label) as progress,
        ):
            outcome = run_row(
                task,
                method,
                Path(scratch) / out.name,
                before,
                key=jax.random.key(experiment.seed),
                coder=experiment.coder,
                state_path=search_path(searches, experiment, method, task_fingerprint(task)),
                progress=progress,
            )
            # The file takes its name last: where it stood there before, the command could not be run again after an interruption.
            (Path(scratch) / out.name).replace(out)
    finally:
        if not any(searches.iterdir()):
            searches.rmdir()
    files = stored_table(out, out.name)
    entry = Entry(label=method.label, settings=repr(method), row=outcome.row, file=out.name, sha256=file_digest(out))
    found = Comparison.of(task, before, [entry])
    for shown in ([search_table(outcome.info, task.metric)] if outcome.info else []) + [files, results_table(found)]:
        console.print(rich_table(shown))
    if is_micro(out):
        for line in micro_summary(out, before.float_bytes, np.asarray(task.test[0]["inputs"])):
            say(console, line)
    if outputs.table is not None:
        with atomic_write(outputs.table, force=outputs.force) as file:
            file.write(table_text(found, outputs.command))
    if outputs.report is not None:
        with atomic_write(outputs.report, force=outputs.force) as file:
            file.write(experiment_page(found, outputs.command, row_details(task, outcome, files)).encode())
    shutil.rmtree(searches, ignore_errors=True)  # there is none where nothing was searched
    say(console, f"wrote {out}" + (f" and {outputs.report}" if outputs.report else ""))


def compress_within(experiment: Experiment, data: Path | None, outputs: Outputs, budget: Budget, console: Console) -> None:
    """Compresses to a size, or within a drop, at one lmbda for all leaves; arguments are those of :func:`compress_by_plan`.

    Raises:
      ValueError: the task has no outputs, or no lmbda keeps the budget.
    """
    outputs.check()
    with progress_bar(console, "preparing") as progress:
        task = experiment.make_task(data, progress)
    if task.outputs is None:
        raise ValueError(
            f"task {task.name!r} has no outputs, which the curvature of its weights is taken from: give it outputs=, or pass "
            "--plan, which needs scores alone"
        )
    method: Method = budget.method(experiment, task.metric)
    compress_experiment(dataclasses.replace(experiment, methods=(method,)), None, outputs, console, task=task)
    size = outputs.out.stat().st_size
    if budget.target_bytes is not None and size > budget.target_bytes:
        raise RuntimeError(f"{outputs.out} has {size:,} bytes, where {budget.target_bytes:,} were asked for")


def compress_by_plan(
    experiment: Experiment, config_path: Path, data: Path | None, outputs: Outputs, budget: Budget, console: Console
) -> None:
    """Plans, compresses by the plan, and writes the plan beside the file as a config."""
    out = outputs.out
    plan_path = out.with_name(f"{out.name.removesuffix('.bq.safetensors')}.plan.py")
    outputs.check(plan_path)
    with progress_bar(console, "preparing") as progress:
        task = experiment.make_task(data, progress)
    # Measurements are those of the config: other budgets use them, too.
    state = out.with_name(f"{config_path.stem}.budget.jsonl")
    plan, text = plan_within(budget, experiment, task, state, (config_path, plan_path, outputs.command), console)
    method: Method = plan.method
    compress_experiment(dataclasses.replace(experiment, methods=(method,)), None, outputs, console, task=task)
    size = out.stat().st_size
    if size != plan.file_bytes:
        raise RuntimeError(f"{out} has {size:,} bytes, its plan was verified with {plan.file_bytes:,}")
    with atomic_write(plan_path, force=outputs.force) as file:
        file.write(text.encode())
    say(console, text)
    say(console, f"wrote {plan_path}, the plan as a config")
