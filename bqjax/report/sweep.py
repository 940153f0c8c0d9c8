"""Sensitivity figures as files: data, pictures, and a page on which every point tells its numbers."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from bqjax.experiment.config import SweepConfig
from bqjax.experiment.figures import Figure, NoiseByLayer
from bqjax.experiment.recipes import make_recipe
from bqjax.experiment.sweep import FigureRows, Sweeps, against_zero, compare_halves
from bqjax.report.html import page
from bqjax.report.plots import BLUE, GREY, ORANGE, as_png, as_svg, drawing, plain
from bqjax.report.predictions import has_predictions, prediction_picture, prediction_table
from bqjax.report.race import race_data, race_table
from bqjax.report.recipe import recipe_table, recipe_text
from bqjax.report.tables import Table
from bqjax.report.units import Unit, unit_of
from bqjax.sensitivity.perturb import CodeNoise, HalfNoise, Noise
from bqjax.sensitivity.sweeps import SweepRow

__all__ = [
    "PAGE",
    "comparison_text",
    "figure_table",
    "result_names",
    "sweep_csv",
    "sweep_files",
    "sweep_json",
    "sweep_records",
    "zero_text",
]

PAGE = "report.html"
RECIPE = "recipe.md"
PREDICTIONS = "predictions"
_FAINT = "#e4e7eb"
_METRIC = "metric "  # what the CSV's columns of metrics begin with

# The numbers of a point stand above its picture while the pointer is on it. No script: a page may be opened anywhere.
_HOVER = """<style>
.point { cursor: crosshair; }
.point .hit { fill: transparent; }
.point:hover .hit { fill: #d9730d; fill-opacity: 0.25; stroke: #d9730d; }
.point .tip { visibility: hidden; font: 10px sans-serif; fill: #1f2933; }
.point:hover .tip { visibility: visible; }
</style>"""


def sweep_records(sweeps: Sweeps) -> list[dict[str, Any]]:
    """A flat dict a row: what was perturbed and how, the drop, its standard errors, and the metrics.

    ``drop`` is that of the sweep's metric, as a fraction; ``standard_error`` is over draws, ``paired_error`` over examples,
    ``error`` over both, and ``p`` of a drop of 0, adjusted for all rows of the figure (Holm). What a row does not have is None.
    """
    records = []
    for figure, rows in sweeps.figures:
        for row, statement in zip(rows, against_zero(rows), strict=True):
            c = row.candidate
            how = c.perturbation
            records.append(
                {
                    "figure": figure.name,
                    "leaf": c.leaf,
                    "size": sweeps.sizes[c.leaf],
                    "series": c.tags["series"],
                    "bin": int(c.tags["bin"]) if "bin" in c.tags else None,
                    "lower": _finite(c.lower),
                    "upper": _finite(c.upper),
                    "kind": how.kind if isinstance(how, Noise | CodeNoise | HalfNoise) else type(how).__name__,
                    "magnitude": c.magnitude,
                    "by": c.tags.get("by"),
                    "draws": c.draws,
                    "drop": _finite(row.drop),
                    "standard_error": _finite(row.standard_error),
                    "paired_error": _finite(row.paired_error),
                    "error": _finite(row.error),
                    "p": _finite(statement.p),
                    "predicted": _finite(row.predicted),
                    "metrics": {name: _finite(value) for name, value in row.metrics.items()},
                }
            )
    return records


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def sweep_csv(sweeps: Sweeps) -> str:
    """The records as CSV, numbers in full precision, a column a metric, empty where there is no value."""
    out = io.StringIO()
    metrics = list(sweeps.result.baseline)
    records = sweep_records(sweeps)
    columns = [*(name for name in records[0] if name != "metrics"), *(_METRIC + name for name in metrics)]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        found = record.pop("metrics")
        writer.writerow({**record, **{_METRIC + name: found[name] for name in metrics}})
    return out.getvalue()


def sweep_json(sweeps: Sweeps, command: str) -> str:
    """The records with what they were measured on; standard JSON, null where there is no value."""
    content = {
        "command": command,
        "task": sweeps.task_name,
        "data": sweeps.data_name,
        "n_examples": sweeps.n_examples,
        "gradient_data": sweeps.gradient_name,
        "metric": sweeps.result.metric,
        "baseline": dict(sweeps.result.baseline),
        "unused": list(sweeps.result.unused),
        "figures": [{"name": figure.name, "title": figure.title} for figure, _ in sweeps.figures],
        "comparisons": {r.figure.name: _comparisons(r) for r in sweeps.figures if r.figure.uses_gradient},
        "leaves": {name: _spread(sweeps, name) for name in dict.fromkeys(row.candidate.leaf for row in sweeps.result.rows)},
        "race": race_data(sweeps.result),
        "rows": sweep_records(sweeps),
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _comparisons(rows: FigureRows) -> dict[str, Any]:
    """Counts of layers, by statistic where there are several."""
    ranked = _ranked(rows)
    return compare_halves(rows)._asdict() if ranked == ["largest"] else {by: compare_halves(rows, by)._asdict() for by in ranked}


def _ranked(rows: FigureRows) -> list[str]:
    return [by for by in dict.fromkeys(row.candidate.tags["by"] for row in rows.rows) if by != "random"]


def result_names(config: SweepConfig, predict: bool = False) -> list[str]:
    """Names of the files that a sweep leaves in its folder, with a curvature or without one; the page is written last."""
    names = [figure.name for figure in config.figures] + [PREDICTIONS] * predict
    pictures = [f"{name}.{ending}" for name in names for ending in ("png", "svg")]
    return ["sweep.csv", "sweep.json", *pictures, *([RECIPE] if _has_recipe(config.figures) else []), PAGE]


def _has_recipe(figures: Sequence[Figure]) -> bool:
    """Whether there is a figure that a recipe is made from: Gaussian noise on whole layers."""
    return any(isinstance(figure, NoiseByLayer) and figure.kind == "gaussian" for figure in figures)


def sweep_files(sweeps: Sweeps, command: str, max_drop: float = 0.01) -> dict[str, bytes]:
    """All files of a sweep by name. The same rows and command give the same bytes.

    Args:
      sweeps: what was measured.
      command: what made it.
      max_drop: of the recipe, where there is one: :func:`~bqjax.experiment.recipes.make_recipe`.
    """
    files = {"sweep.csv": sweep_csv(sweeps).encode(), "sweep.json": sweep_json(sweeps, command).encode()}
    sections: list[tuple[str, Sequence[str | Table]]] = []
    for rows in sweeps.figures:
        png, svg = _pictures(sweeps, rows)
        files[f"{rows.figure.name}.png"] = png
        files[f"{rows.figure.name}.svg"] = svg.encode()
        sections.append((rows.figure.title, [svg]))
        sections.append((f"{rows.figure.title}: numbers", [figure_table(sweeps, rows)]))
    if sweeps.result.race is not None and (table := race_table(sweeps.result)) is not None:
        sections.append(("Race", [table]))
    if has_predictions(sweeps.result.rows):
        files |= _predictions(sweeps, sections)
    if _has_recipe([rows.figure for rows in sweeps.figures]):
        recipe = make_recipe(json.loads(files["sweep.json"]), max_drop=max_drop)
        files[RECIPE] = recipe_text(recipe, command).encode()
        sections.append(("Recipe", [recipe_table(recipe)]))
    files[PAGE] = page(f"{sweeps.task_name}: sensitivity", command, sections).encode()
    return files


def _predictions(sweeps: Sweeps, sections: list[tuple[str, Sequence[str | Table]]]) -> dict[str, bytes]:
    """Predicted against measured effects of all figures, by the metric that a search ranks by: a loss tells more than accuracy."""
    about = (sweeps.result.rows, sweeps.result.baseline, sweeps.rank_by)
    png, svg = prediction_picture(*about, f"{sweeps.task_name}, {sweeps.n_examples:,} examples")
    sections.append(("Predicted and measured", [svg, prediction_table(*about)]))
    return {f"{PREDICTIONS}.png": png, f"{PREDICTIONS}.svg": svg.encode()}


def _data_text(sweeps: Sweeps) -> str:
    name, count = sweeps.result.metric.removeprefix("-"), f"{sweeps.n_examples:,}"
    data = sweeps.data_name if count in sweeps.data_name.split() else f"{count} examples: {sweeps.data_name}"
    unit = unit_of(name)
    return f"{name} ({unit.text(sweeps.result.baseline[name])}{unit.suffix} unperturbed) on {data}"


def _damage(sweeps: Sweeps) -> str:
    """The drop of an accuracy, the increase of a loss."""
    return "increase" if sweeps.result.metric.startswith("-") else "drop"


def _drop_text(row: SweepRow, unit: Unit) -> str:
    drop = round(unit.factor * row.drop, unit.digits) + 0.0  # never a negative zero
    error = f" ± {unit.text(_error(row))}" if math.isfinite(_error(row)) else ""
    return f"{drop:+.{unit.digits}f}{error}"


def _error(row: SweepRow) -> float:
    """Over examples and draws, or over what is known of them."""
    return row.error if math.isfinite(row.error) else row.standard_error


def _spread(sweeps: Sweeps, name: str) -> dict[str, Any]:
    deviation, largest, channels = sweeps.spreads[name]
    return {"size": sweeps.sizes[name], "standard_deviation": deviation, "largest": largest, "channels_largest": channels}


def figure_table(sweeps: Sweeps, rows: FigureRows) -> Table:
    """A line a layer, a column a series: the damage with its standard error, in points where it is one of shares."""
    unit = unit_of(sweeps.result.metric)
    found = {(row.candidate.leaf, row.candidate.tags["series"]): _drop_text(row, unit) for row in rows.rows}
    lines = [(leaf, f"{sweeps.sizes[leaf]:,}", *(found.get((leaf, series), "") for series in rows.series)) for leaf in rows.leaves]
    shown = "in points ± standard error" if unit.points else "± standard error"
    caption = f"{_damage(sweeps).capitalize()} of {_data_text(sweeps)}; {shown} over {_over(sweeps, rows)}. {zero_text(rows)}"
    if rows.figure.uses_gradient:
        caption += f" Gradients on {sweeps.gradient_name}. {comparison_text(rows)}"
    return Table(rows.figure.title, ("layer", "weights", *rows.series), lines, caption)


def _over(sweeps: Sweeps, rows: FigureRows) -> str:
    """What the errors are over."""
    if sweeps.result.race is not None:
        return "the rounds of a race, each of new noise on other examples"
    draws = f"{' or '.join(map(str, sorted({row.candidate.draws for row in rows.rows})))} draws of noise"
    return f"examples and {draws}" if any(row.differences is not None for row in rows.rows) else draws


def zero_text(rows: FigureRows, level: float = 0.05) -> str:
    """How many rows differ from zero, in a sentence."""
    found = against_zero(rows.rows, level)
    return (
        f"{sum(s.differs for s in found)} of {len(found)} differ from 0 (all of these together at {100 * (1 - level):g} %, Holm)."
    )


def comparison_text(rows: FigureRows) -> str:
    """In how many layers the half that is ranked highest hurts more, in a sentence a statistic."""
    return " ".join(_comparison(rows, by) for by in _ranked(rows))


def _comparison(rows: FigureRows, by: str) -> str:
    found = compare_halves(rows, by)
    what = {"largest": "of largest gradient", "gradient": "of largest gradient"}.get(by, f"ranked highest by {by}")
    text = f"The weights {what} hurt more than random ones in {found.more} of {found.layers} layers, less in {found.less}"
    if found.clearly is None:
        return f"{text}; one draw has no standard error."
    return f"{text}; by more than 2 standard errors more in {found.clearly} and less in {found.clearly_less}."


def _common(leaves: Sequence[str]) -> str:
    """The last part of the names, where it is the same in all of several."""
    ends = {leaf.rpartition("/")[2] for leaf in leaves}
    return f"/{ends.pop()}" if len(ends) == 1 and len(leaves) > 1 and all("/" in leaf for leaf in leaves) else ""


def _colors(form: str, n: int) -> list[Any]:
    if form == "choices" and n <= 2:
        return [BLUE, ORANGE][:n]
    # In order, from dark to light; the lightest end of the map is too faint on white.
    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.0, 0.85, n)]


def _pictures(sweeps: Sweeps, rows: FigureRows) -> tuple[bytes, str]:
    """One figure as PNG and as SVG whose points tell their numbers."""
    figure, leaves, series = rows.figure, rows.leaves, rows.series
    n, colors = len(series), _colors(rows.figure.form, len(rows.series))
    # Bins stand side by side within their layer; the other forms are moved apart just enough to tell error bars apart.
    step = 0.8 / n if figure.form == "bins" else min(0.12, 0.4 / n)
    width = min(15.0, max(6.8, 2.4 + len(leaves) * (0.07 * n + 0.16 if figure.form == "bins" else 0.26)))
    end = _common(leaves)
    metric, unit, damage = sweeps.result.metric.removeprefix("-"), unit_of(sweeps.result.metric), _damage(sweeps)
    tips: list[tuple[str, str]] = []
    with drawing(width, 4.2 if len(leaves) <= 25 else 5.2) as (picture, axes):
        axes.axhline(0, color=GREY, linewidth=0.8)
        if figure.form == "bins":
            found = {(r.candidate.leaf, r.candidate.tags["series"]): r for r in rows.rows}
            for i, leaf in enumerate(leaves):
                axes.axvline(i + 0.5, color=_FAINT, linewidth=0.6, zorder=0)
                mine = [(j, found[leaf, s]) for j, s in enumerate(series) if (leaf, s) in found]
                at = [i + (j - (n - 1) / 2) * step for j, _ in mine]
                axes.plot(at, [unit.factor * r.drop for _, r in mine], color=GREY, linewidth=0.6, zorder=1)
        for j, label in enumerate(series):
            points = [r for r in rows.rows if r.candidate.tags["series"] == label]
            x = [leaves.index(r.candidate.leaf) + (j - (n - 1) / 2) * step for r in points]
            y = [unit.factor * r.drop for r in points]
            error = [unit.factor * _error(r) if math.isfinite(_error(r)) else 0.0 for r in points]
            joined = "" if figure.form == "bins" else "-"
            axes.errorbar(x, y, error, color=colors[j], fmt=joined or "none", linewidth=0.9, elinewidth=0.9, capsize=1.5, zorder=2)
            axes.plot([], [], "o" + joined, color=colors[j], markersize=4, linewidth=0.9, label=plain(label))
            for row, a, b in zip(points, x, y, strict=True):
                name = f"{figure.name}-point-{len(tips)}"
                axes.plot([a], [b], "o", color=colors[j], markersize=3.5, zorder=3, gid=name)
                size = f"{sweeps.sizes[row.candidate.leaf]:,} weights"
                tips.append((name, f"{row.candidate.leaf} ({size}), {label}: {damage} {_drop_text(row, unit)}{unit.points}"))
        axes.set_xticks(range(len(leaves)), [plain(leaf.removesuffix(end)) for leaf in leaves], rotation=90)
        axes.tick_params(axis="x", labelsize=8 if len(leaves) < 40 else 7)
        axes.grid(axis="y", color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set(
            xlim=(-0.7, len(leaves) - 0.3),
            xlabel=plain(f"layer (…{end})" if end else "layer"),
            ylabel=plain(unit.heading(f"{damage} of {metric}")),
        )
        # The title leaves the topmost line to the numbers of a point.
        picture.suptitle(plain(f"\n{figure.title}\n{_data_text(sweeps)}"), fontsize=9)
        if n > 1:
            picture.legend(frameon=False, fontsize=8, loc="outside right center")
        return as_png(picture), _with_tips(as_svg(picture), tips)


def _with_tips(svg: str, tips: Sequence[tuple[str, str]]) -> str:
    """The picture with a larger spot on every named point that shows its text."""
    for name, text in tips:
        start = svg.index(f'<g id="{name}">')
        place = re.compile(r'<use [^>]*?\bx="([-\d.]+)" y="([-\d.]+)"').search(svg, start)
        if place is None:
            raise RuntimeError(f"matplotlib drew no marker for {name}")
        x, y = place.groups()
        shown = html.escape(text)
        spot = (
            f'<g id="{name}" class="point"><title>{shown}</title><circle class="hit" cx="{x}" cy="{y}" r="5"/>'
            f'<text class="tip" x="8" y="9">{shown}</text>'
        )
        svg = svg[:start] + spot + svg[start + len(f'<g id="{name}">') :]
    first = svg.index(">") + 1
    return svg[:first] + _HOVER + svg[first:]
