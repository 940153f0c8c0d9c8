"""The picture of an experiment: every row's metric against its file's bytes, and what no other row beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bqjax.experiment.entry import Comparison
from bqjax.experiment.row import Row
from bqjax.report.plots import GREY, as_png, as_svg, drawing, plain
from bqjax.report.units import unit_of

__all__ = ["pareto_plot"]

_MARKERS = "o^vPX*<>ph8d"
# Offsets of a label from its point, in points; the first that touches nothing is taken.
_PLACES = [(x, y) for r in (7, 14, 22, 32, 44, 58) for x, y in ((r, 3), (r, -9), (-r, 3), (-r, -9), (0, r), (0, -r - 5))]


def _family(label: str) -> str:
    """What labels of one method at several settings have in common: all before the first comma."""
    return label.split(",")[0].strip()


def pareto_plot(comparison: Comparison) -> tuple[bytes, str]:
    """The picture as PNG and as SVG text.

    A colour and a marker a family (what stands before a label's first comma). Rows of the front carry their labels. Rows
    that lost more than can be shown beside the others stand at the lower edge with their value.
    """
    name, before = comparison.metric.removeprefix("-"), comparison.before
    sign = -1 if comparison.metric.startswith("-") else 1
    unit = unit_of(name)
    base, rows = unit.factor * before.test[name], comparison.rows
    values = {row.method: unit.factor * row.after for row in rows}
    floor = _floor(base, list(values.values()), sign, unit.reach)
    with drawing(9.6, 5.6) as (figure, axes):
        axes.set_xscale("log")
        axes.axhline(base, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        axes.plot([before.float_bytes], [base], "s", color=GREY, label=before.original_name, zorder=3)
        axes.plot([before.zstd_bytes], [base], "D", color=GREY, label="zstd -19, lossless", zorder=3)
        points = [(before.float_bytes, base), (before.zstd_bytes, base)]
        labels: list[tuple[tuple[float, float], str, Any]] = []
        front, colors = comparison.front, _colors(rows)
        for family, (color, marker) in colors.items():
            mine = [(row.file_bytes, _held(values[row.method], floor, sign)) for row in rows if _family(row.method) == family]
            axes.plot(*zip(*mine, strict=True), marker, color=color, markersize=6, label=plain(family), zorder=4, linestyle="")
            points += mine
        best = [(row.file_bytes, values[row.method]) for row in rows if row.method in front]
        best = sorted(p for p in best if sign * p[1] >= sign * floor)
        if best:
            axes.plot(*zip(*best, strict=True), color=GREY, linewidth=0.9, zorder=2, drawstyle="steps-post", label="best")
        for row in rows:
            lost = sign * values[row.method] < sign * floor
            if row.method in front and not lost:
                labels.append(((row.file_bytes, values[row.method]), row.method, colors[_family(row.method)][0]))
            elif lost:
                text = f"{row.method}: {values[row.method]:.{unit.digits - 1}f}"
                labels.append(((row.file_bytes, floor), text, colors[_family(row.method)][0]))
        low, high = sorted((floor, max(sign * v for v in (base, *values.values())) * sign))
        margin = 0.06 * (high - low or 1)
        axes.set(
            ylim=(low - margin, high + 2 * margin),
            xlabel="file, bytes (log scale)",
            ylabel=plain(f"{name} on {comparison.data[0]}{unit.suffix.replace(' ', ', ')}"),
        )
        axes.set_title(plain(f"{comparison.task_name}: every point is a file, decoded and scored"), fontsize=10)
        axes.grid(color="#e4e7eb", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_bytes))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
        _place(figure, axes, points, labels)
        return as_png(figure), as_svg(figure)


def _floor(base: float, values: Sequence[float], sign: int, reach: float) -> float:
    """Where the picture ends: below the rows that lost at most ``reach``, or else below the best of worse ones."""
    near = [v for v in values if sign * (base - v) <= reach]
    if near:
        return min(sign * v for v in near) * sign
    return max(sign * v for v in values) * sign if values else base


def _held(value: float, floor: float, sign: int) -> float:
    return floor if sign * value < sign * floor else value


def _colors(rows: Sequence[Row]) -> dict[str, tuple[Any, str]]:
    families = list(dict.fromkeys(_family(row.method) for row in rows))
    return {f: (f"C{i % 10}", _MARKERS[i % len(_MARKERS)]) for i, f in enumerate(families)}


def _bytes(value: float, position: int | None = None) -> str:
    del position
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"


def _place(
    figure: Figure, axes: Any, points: Sequence[tuple[float, float]], labels: Sequence[tuple[tuple[float, float], str, Any]]
) -> None:
    """Writes labels beside their points where they touch neither points nor one another, as far as there is room."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # fixes the layout, which positions depend on
    renderer = canvas.get_renderer()
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in axes.transData.transform(points)]
    frame = axes.get_window_extent(renderer)
    for at, text, color in labels:
        label = axes.annotate(
            plain(text),
            at,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=color,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        )
        label.set_in_layout(False)
        boxes = []
        for x, y in _PLACES:
            label.set(position=(x, y), ha="left" if x > 0 else "right" if x < 0 else "center")
            label.update_positions(renderer)
            box = matplotlib.text.Text.get_window_extent(label, renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            touched = sum(box.overlaps(other) for other in taken)
            boxes.append((touched + (0 if inside else 100), (x, y), box))
            if inside and not touched:
                break
        _, (x, y), box = min(boxes, key=lambda found: found[0])
        label.set(position=(x, y), ha="left" if x > 0 else "right" if x < 0 else "center")
        taken.append(box)
