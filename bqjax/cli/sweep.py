"""What ``bqjax sweep`` does; :mod:`bqjax.cli.arguments` parses its arguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from bqjax.core.files import atomic_write
from bqjax.experiment import sweep as sweeps
from bqjax.experiment.config import SweepConfig
from bqjax.report.console import progress_bar, say
from bqjax.report.race import race_table, race_text
from bqjax.report.sweep import PAGE, figure_table, result_names, sweep_files
from bqjax.report.tables import rich_table
from bqjax.report.units import unit_of
from bqjax.sensitivity.racing import parse_until

__all__ = ["sweep_network"]

_STATE = "sweep.state.jsonl"


def sweep_network(
    config: SweepConfig,
    data: Path | None,
    out: Path,
    *,
    command: str,
    examples: int | None = None,
    until: str | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    budget: float | None = None,
    predict: bool = False,
    max_drop: float = 1.0,
    force: bool = False,
    console: Console,
) -> None:
    """Measures the figures of a config, prints a table of each, and writes data, pictures and a page into a folder.

    Interrupted, it keeps its measurements in the folder and goes on from them when run again.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: --out names a folder")
    if examples is not None and examples < 1:
        raise ValueError(f"--examples must be at least 1, got {examples}")
    goal = None if until is None else parse_until(until)
    if not 0 < confidence < 1:
        raise ValueError(f"--confidence must be between 0 and 1, got {confidence:g}")
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise ValueError(f"--tolerance must be finite and not negative, got {tolerance:g}")
    if budget is not None and not (isinstance(goal, str) and goal.startswith("top")):
        raise ValueError(f"--budget goes with --until top10, or another number; got --until {until}")
    if not max_drop > 0:
        raise ValueError(f"--max-drop must be positive, got {max_drop:g}")
    state = out / _STATE
    # The page is written last and the state removed after it: without a page and with a state, a sweep did not finish.
    there = [out / name for name in result_names(config, predict) if (out / name).exists()]
    if there and not force and (not state.exists() or (out / PAGE).exists()):
        raise ValueError(f"{there[0]} exists: pass --force to overwrite the results in {out}, or name another --out")
    with progress_bar(console, "preparing") as progress:
        task = config.make_task(data, progress)
    unit = unit_of(task.metric)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar(console, task.name) as progress:
        goals: dict[str, Any] = {
            "until": goal,
            "confidence": confidence,
            "tolerance": unit.value(tolerance),
            "budget": budget,
            "curvature": predict,
        }
        found = sweeps.run_sweep(config, task, limit=examples, state_path=state, progress=progress, **goals)
    for name, content in sweep_files(found, command, unit.value(max_drop)).items():
        with atomic_write(out / name, force=True) as file:
            file.write(content)
    for rows in found.figures:
        table = figure_table(found, rows)
        say(console, f"{table.title}. {table.caption}")  # as lines of their own: a narrow table would fold them
        console.print(rich_table(table._replace(title="", caption="")))
    for path in sweeps.state_files(state):
        path.unlink()
    result = found.result
    if result.race is not None:
        if (places := race_table(result)) is not None:
            console.print(rich_table(places._replace(title="", caption="")))
        say(console, race_text(result))
    resumed = f", {result.n_resumed:,} of them by an earlier run" if result.n_resumed else ""
    say(console, f"scored {result.n_scores:,} perturbed networks{resumed} in {result.seconds:.0f} s; wrote {out / PAGE}")
