"""A budget's plan as a table, and as a config file that makes its file again."""

from __future__ import annotations

import os
from pathlib import Path

from bqjax.methods.budget.plan import Planned
from bqjax.methods.budget.search import BudgetPlan
from bqjax.report.tables import Table
from bqjax.report.units import unit_of

__all__ = ["plan_table", "plan_text"]


def plan_table(plan: BudgetPlan, metric: str) -> Table:
    """A line a unit: how it is stored, and what that costs it alone; drops are of ``metric``."""
    lines, shown_in = [], unit_of(metric)
    for unit in plan.units:
        setting, shown = unit.option.setting, ", ".join(unit.names[:3]) + (" and others" if len(unit.names) > 3 else "")
        distortion = unit.option.distortions[plan.kind]
        bits = 8 * unit.option.bytes / unit.size
        how = "left alone" if setting is None else repr(setting)
        lines.append((shown, f"{unit.size:,}", how, f"{unit.option.bytes:,}", f"{bits:.3f}", f"{distortion:.4g}"))
    lines.append(
        ("sum", f"{sum(u.size for u in plan.units):,}", "", f"{plan.predicted.bytes:,.0f}", "", f"{plan.predicted.distortion:.4g}")
    )
    measured_in = "change of the outputs" if plan.kind == "outputs" else "increase of the ranking metric's loss"
    error = "" if plan.drop_error is None else f" ± {shown_in.text(plan.drop_error)}"
    caption = (
        f"Distortion: {measured_in} on calibration data, each unit compressed alone. The whole file: {plan.file_bytes:,} bytes, "
        f"drop of the metric on calibration data {shown_in.text(plan.drop, '+')}{error}{shown_in.points}. Planned with "
        f"{plan.n_options} options, {plan.n_measured} of them and {plan.n_verified} whole plans measured in this run."
    )
    return Table("Plan", ("unit", "weights", "stored as", "bytes", "bits/weight", "distortion"), lines, caption)


def plan_text(method: Planned, config: Path, path: Path, command: str) -> str:
    """A config file that makes the plan's file again.

    Args:
      method: the plan.
      config: of the task.
      path: where the text is to stand; it names ``config`` from there.
      command: what found the plan.
    """
    relative = Path(os.path.relpath(config.resolve(), path.resolve().parent)).as_posix()
    layers = "\n".join(f"                Layer({layer.names!r}, {layer.setting!r})," for layer in method.layers)
    return f'''"""A plan, found by

{command}

Makes the same file again: bqjax compress --config {path.name} (with the same --data)
"""

from pathlib import Path

from bqjax.experiment import Experiment, load_config
from bqjax.methods import Blocks, Layer, Planned, Values  # noqa: F401  a plan may use one of the two only

base = load_config(Path(__file__).parent / {relative!r}, Experiment)

config = Experiment(
    task=base.task,
    data=base.data,
    seed=base.seed,
    coder=base.coder,
    methods=(
        Planned(
            layers=(
{layers}
            ),
            draws={method.draws},
            floor={method.floor!r},
            iterations={method.iterations},
            label={method.label!r},
        ),
    ),
)
'''
