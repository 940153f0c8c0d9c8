"""What ``bqjax compress --target-size`` and ``--max-drop`` do with a config; :mod:`bqjax.cli.arguments` parses their arguments."""

from __future__ import annotations

import re
from pathlib import Path

import jax
from rich.console import Console

from bqjax.cli.compress import compress_experiment
from bqjax.core.files import atomic_write
from bqjax.experiment.config import CompareConfig, ExperimentConfig
from bqjax.methods.budget.search import find_plan
from bqjax.report.console import progress_bar, say
from bqjax.report.plan import plan_table, plan_text
from bqjax.report.tables import rich_table

__all__ = ["compress_within_budget", "parse_size"]

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
