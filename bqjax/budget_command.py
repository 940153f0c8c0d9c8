"""What ``bqjax compress --target-size`` and ``--max-drop`` do with a config; :mod:`bqjax.cli` parses their arguments."""

from __future__ import annotations

import os
import re
from pathlib import Path

import jax
from rich.console import Console

from bqjax.budget_search import BudgetPlan, find_plan
from bqjax.commands import compress_experiment, progress_bar, say
from bqjax.compare import CompareConfig
from bqjax.experiment import ExperimentConfig
from bqjax.files import atomic_write
from bqjax.planned import Planned
from bqjax.report.tables import Table, rich_table

__all__ = ["compress_within_budget", "parse_size", "plan_table", "plan_text"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: ``200KB`` is 200,000 bytes, ``200KiB`` 204,800.

    Raises:
      ValueError: it is no size, or below one byte.

    >>> parse_size("200KB"), parse_size("1.5 MiB"), parse_size("12_000")
    (200000, 1572864, 12000)
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"--target-size {text!r} is no size: write bytes, or a number with KB, MB, KiB or MiB")
    size = int(float(match[1].replace("_", "")) * _UNITS[match[2].lower()])
    if size < 1:
        raise ValueError(f"--target-size {text!r} is less than a byte")
    return size


def plan_table(plan: BudgetPlan) -> Table:
    """A line a unit: how it is stored, and what that costs it alone."""
    lines = []
    for unit in plan.units:
        setting, shown = unit.option.setting, ", ".join(unit.names[:3]) + (" and others" if len(unit.names) > 3 else "")
        damage = unit.option.damages[plan.kind]
        bits = 8 * unit.option.bytes / unit.size
        how = "left alone" if setting is None else repr(setting)
        lines.append((shown, f"{unit.size:,}", how, f"{unit.option.bytes:,}", f"{bits:.3f}", f"{damage:.4g}"))
    lines.append(
        ("sum", f"{sum(u.size for u in plan.units):,}", "", f"{plan.predicted.bytes:,.0f}", "", f"{plan.predicted.damage:.4g}")
    )
    measured_in = "change of the outputs" if plan.kind == "outputs" else "increase of the ranking metric's loss"
    error = "" if plan.drop_error is None else f" ± {100 * plan.drop_error:.2f}"
    caption = (
        f"Damage: {measured_in} on calibration data, each unit compressed alone. The whole file: {plan.file_bytes:,} bytes, "
        f"drop of the metric on calibration data {100 * plan.drop:+.2f}{error} points. Planned with {plan.n_options} options, "
        f"{plan.n_measured} of them and {plan.n_verified} whole plans measured in this run."
    )
    return Table("Plan", ("unit", "weights", "stored as", "bytes", "bits/weight", "damage"), lines, caption)


def plan_text(method: Planned, config: Path, path: Path, command: str) -> str:
    """A config file that makes the plan's file again.

    Args:
      method: the plan.
      config: of the task.
      path: where the text is to stand; it names ``config`` from there.
      command: what found the plan.
    """
    relative = Path(os.path.relpath(config.resolve(), path.resolve().parent)).as_posix()
    layers = "\n".join(f"            Layer({layer.names!r}, {layer.setting!r})," for layer in method.layers)
    return f'''"""A plan, found by

{command}

Makes the same file again: bqjax compress --config {path.name} (with the same --data)
"""

from pathlib import Path

from bqjax.compare import CompareConfig
from bqjax.commands import load_config
from bqjax.experiment import ExperimentConfig
from bqjax.planned import Blocks, Layer, Planned, Values  # noqa: F401  a plan may use one of the two only

base = load_config(Path(__file__).parent / {relative!r}, ExperimentConfig, CompareConfig)

config = ExperimentConfig(
    task=base.task,
    data=base.data,
    seed=base.seed,
    coder=base.coder,
    method=Planned(
        layers=(
{layers}
        ),
        draws={method.draws},
        floor={method.floor!r},
        iterations={method.iterations},
        label={method.label!r},
    ),
)
'''


def compress_within_budget(
    config: ExperimentConfig | CompareConfig,
    config_path: Path,
    data: Path | None,
    out: Path,
    *,
    target_size: str | None,
    max_drop: float | None,
    confidence: float = 0.5,
    command: str,
    report: Path | None = None,
    table: Path | None = None,
    force: bool = False,
    console: Console,
) -> None:
    """Plans, compresses by the plan, scores the file on test data, and writes the plan beside it as a config.

    Interrupted, it keeps its measurements beside ``out`` in ``CONFIG.budget.jsonl``; other budgets of the config use them, too.
    """
    plan_path = out.with_name(f"{out.name.removesuffix('.bq.safetensors')}.plan.py")
    for path in (out, plan_path, report, table):
        if path is not None and path.exists() and not force:
            raise ValueError(f"{path} exists: pass --force to overwrite it")
    target = None if target_size is None else parse_size(target_size)
    if max_drop is not None and not max_drop >= 0:
        raise ValueError(f"--max-drop must not be negative, got {max_drop:g}: the uncompressed network has no drop")
    if config.data is not None and data is None:
        raise ValueError(f"--data is missing: it must name a folder with {config.data}")
    with progress_bar(console, "preparing") as progress:
        task = config.task(data, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    label = f"planned, {target_size}" if target_size is not None else f"planned, drop {max_drop:g}"
    label += f" at {confidence:g}" if confidence > 0.5 else ""
    with progress_bar(console, "planning") as progress:
        plan = find_plan(
            task,
            config.budget,
            key=jax.random.key(config.seed),
            target_bytes=target,
            max_drop=None if max_drop is None else max_drop / 100,
            confidence=confidence,
            label=label,
            coder=config.coder,
            state_path=out.with_name(f"{config_path.stem}.budget.jsonl"),
            progress=progress,
        )
    console.print(rich_table(plan_table(plan)))
    text = plan_text(plan.method, config_path, plan_path, command)
    compress_experiment(
        ExperimentConfig(task=lambda folder, progress: task, method=plan.method, seed=config.seed, coder=config.coder),
        None,
        out,
        command=command,
        report=report,
        table=table,
        force=force,
        console=console,
    )
    size = out.stat().st_size
    if size != plan.file_bytes:
        raise RuntimeError(f"{out} has {size:,} bytes, its plan was verified with {plan.file_bytes:,}")
    with atomic_write(plan_path, force=force) as file:
        file.write(text.encode())
    say(console, text)
    say(console, f"wrote {plan_path}, the plan as a config")
