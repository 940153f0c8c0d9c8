"""Rows of results as text: for a terminal, for Markdown and for HTML, with the same columns everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import rich.box
import rich.table
import rich.text

from bqjax import codec
from bqjax.experiment.entry import Comparison
from bqjax.experiment.row import Row
from bqjax.methods.bins import SearchInfo
from bqjax.methods.rate_distortion import RateDistortionInfo
from bqjax.report.units import unit_of
from bqjax.tflite.codes.search import QuantizedInfo
from bqjax.tflite.container import searched_layers, stored_constants
from bqjax.tflite.format.constants import WEIGHTED, Constant

__all__ = ["Table", "file_table", "markdown", "results_table", "rich_table", "search_table"]


class Table(NamedTuple):
    """A table of strings; the first column is text, the others are numbers and set to the right."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""


def results_table(comparison: Comparison) -> Table:
    """Before and after, sizes and ratios: the uncompressed network, the lossless baseline, then a line a method.

    Of several rows, those that no other beats are marked; methods that failed say so.
    """
    before, name, unit = comparison.before, comparison.metric.removeprefix("-"), unit_of(comparison.metric)
    test, calibration = unit.text(before.test[name]), unit.text(before.calibration[name])

    def sizes(n_bytes: int) -> tuple[str, str, str]:
        return f"{n_bytes:,}", f"{before.float_bytes / n_bytes:.2f}", f"{8 * n_bytes / before.n_params:.3f}"

    def line(row: Row) -> tuple[str, ...]:
        error = "" if row.standard_error is None else f" ± {unit.text(row.standard_error)}"
        agreement = "" if row.agreement is None else f"{100 * row.agreement:.2f}"
        difference = f"{unit.text(row.difference, '+')}{error}"
        return unit.text(row.after), difference, agreement, *sizes(row.file_bytes), unit.text(row.calibration), f"{row.seconds:.1f}"

    columns = (
        "method",
        f"{name}{unit.suffix}",
        unit.heading("difference"),
        "agreement %",
        "file bytes",
        "ratio",
        "bits/weight",
        f"on calibration{unit.suffix}",
        "seconds",
        "best",
    )
    failed = "failed", *("",) * (len(columns) - 2)
    front = comparison.front
    lines = [
        (before.original_name, test, "", "", *sizes(before.float_bytes), calibration, "", ""),
        ("zstd -19 (lossless)", test, unit.text(0.0), "100.00", *sizes(before.zstd_bytes), calibration, "", ""),
        *((e.label, *(failed if e.row is None else (*line(e.row), "yes" if e.label in front else ""))) for e in comparison.entries),
    ]
    several = len(comparison.entries) > 1
    return Table(
        comparison.task_name,
        columns if several else columns[:-1],
        lines if several else [cells[:-1] for cells in lines],
        _caption(comparison, several),
    )


def _caption(comparison: Comparison, several: bool) -> str:
    before, (test, calibration) = comparison.before, comparison.data
    name, original = comparison.metric.removeprefix("-"), before.original_name.removeprefix("the ").removesuffix(" file")
    caption = (
        f"{name} on {test} ({before.n_test} examples) of what the file decodes to; methods saw {calibration} "
        f"({before.n_calibration} examples) only. Difference: paired, with its standard error. Ratio: whole file to whole "
        f"{original} file. Bits/weight: the file's bits over all {before.n_params:,} weights."
    )
    if several:
        caption += " Best: no other row is both as small and as good. Rows that share a search have its seconds in the first."
    return caption + "".join(f" Failed: {entry.label}: {entry.error}." for entry in comparison.failed)


_LEFT = f"Left: stored as it is. Compression with loss changes 8-bit weights of {', '.join(WEIGHTED)} in the first subgraph."


def file_table(info: codec.FileInfo, title: str) -> Table:
    """What ``bqjax inspect`` shows: a line a leaf, then the total.

    Of a ``.tflite`` model, which is restored for it, also what a search did to the layers, and the constants that have no leaf of
    their own; the total counts them all.
    """
    model = info.metadata.get("kind") == "tflite"
    stored = stored_constants(info.path) if model else []
    by_leaf = {found.leaf: found.constant for found in stored}
    lossless = info.metadata.get("method") == "lossless"
    searched = searched_layers(info.metadata)
    without = dict(searched)  # layers that have no leaf of their own

    def remarks(constant: Constant | None) -> tuple[str, str]:
        name = constant.name if constant else ""
        without.pop(name, None)
        left = constant.left if constant and not lossless else ""
        return _done(*searched[name]) if name in searched else ("", f"left: {left}" if left else "")

    lines = []
    for leaf in info.leaves:
        values = "" if leaf.k is None else str(leaf.k)
        constant = by_leaf.get(leaf.name) or by_leaf.get(leaf.name.rpartition("/")[0])  # the latter of a class of its outputs
        weights = constant.n_weights if constant and leaf.name in by_leaf else leaf.size
        counts = weights and (constant is not None or not model)  # the rest of a model is packed bytes
        per_weight = f"{8 * leaf.bytes / weights:.3f}" if counts else ""
        shape = "x".join(map(str, constant.shape if constant and leaf.name in by_leaf else leaf.shape)) or "scalar"
        dtype = constant.type.lower() if constant else leaf.dtype
        kind = leaf.kind if leaf.same_as is None else f"as {leaf.same_as}"
        how = kind, values, leaf.coder or "", leaf.group or ""
        lines.append((leaf.name, shape, dtype, *how, per_weight, f"{leaf.bytes:,}", *remarks(constant)))
    for constant, own in stored:
        if own is None:
            shape = "x".join(map(str, constant.shape)) or "scalar"
            lines.append((constant.name, shape, constant.type.lower(), "within flatbuffer", "", "", "", "", "", *remarks(constant)))
    lines += [(name, "", "", "within flatbuffer", "", "", "", "", "", *_done(*what)) for name, what in without.items()]
    rest = info.file_bytes - sum(leaf.bytes for leaf in info.leaves)
    lines.append(("structure and header", "", "", "", "", "", "", "", f"{rest:,}", "", ""))
    size = sum(found.constant.n_weights for found in stored) if model else sum(leaf.size for leaf in info.leaves)
    per_weight = f"{8 * info.file_bytes / size:.3f}" if size else ""
    lines.append(("total", f"{size:,} weights", "", "", "", "", "", per_weight, f"{info.file_bytes:,}", "", ""))
    columns = ("leaf", "shape", "dtype", "stored as", "values", "coder", "group", "bits/weight", "bytes", "drop, points", "why")
    # Columns that would be empty are left out.
    shown = [i for i in range(len(columns)) if i < 9 or any(line[i] for line in lines)]
    left = model and not lossless and any(found.constant.left for found in stored)
    return Table(title, tuple(columns[i] for i in shown), [tuple(line[i] for i in shown) for line in lines], _LEFT if left else "")


def _done(what: str, drop: float | None) -> tuple[str, str]:
    """Cells of a searched layer."""
    return "" if drop is None else f"{100 * drop:+.2f}", what


_DISTORTION = ("leaf", "predicted distortion", "%", "measured alone", "measured / predicted", "why")


def _distortion_table(info: RateDistortionInfo) -> Table:
    """A line a leaf, what it costs the outputs most first."""
    total, alone = sum(info.predicted.values()), info.measured_leaves
    lines = [
        (
            name,
            f"{cost:.4g}",
            f"{100 * cost / (total or 1.0):.1f}",
            f"{alone[name]:.4g}" if name in alone else "",
            f"{info.ratios[name]:.2f}" if name in info.ratios else "",
            f"importance alone: it {info.left[name]}" if name in info.left else info.notes.get(name, ""),
        )
        for name, cost in sorted(info.predicted.items(), key=lambda item: -item[1])
    ]
    changes = ", ".join(f"{name} {info.baseline[name]:.4f} to {info.final[name]:.4f}" for name in info.baseline)
    caption = (
        f"Half the squared change of an example's outputs: {total:.4g} predicted for all, {info.measured:.4g} measured on "
        f"calibration data. There, {changes}."
    )
    table = Table(f"lmbda {info.lmbda:.4g}", _DISTORTION, lines, caption)
    table = table if alone else _without(table, "measured alone")
    return table if info.ratios else _without(table, "measured / predicted")


def search_table(info: SearchInfo | QuantizedInfo | RateDistortionInfo, metric: str) -> Table:
    """A line a searched leaf, group or layer, then the leaves left alone with the reason; drops are of ``metric``."""
    if isinstance(info, RateDistortionInfo):
        return _distortion_table(info)
    unit = unit_of(metric)
    if isinstance(info, QuantizedInfo):
        found = [
            (layer.name, layer.size, layer.accepted, layer.values, layer.bits, layer.drop, layer.reason, f"{layer.step:.1f}")
            for layer in info.layers
        ]
        left: Mapping[str, str] = {}
    else:
        left = info.left
        found = [
            (
                ", ".join(layer.names),
                layer.size,
                layer.accepted,
                layer.result.n_bins,
                layer.result.entropy,
                layer.drop,
                layer.reason,
                "",
            )
            for layer in info.layers
        ]
    lines = [
        (
            names,
            f"{size:,}",
            "yes" if accepted else "no",
            str(values),
            f"{bits:.3f}",
            step,
            "" if drop is None else unit.text(drop, "+"),
            reason,
        )
        for names, size, accepted, values, bits, drop, reason, step in found
    ]
    lines += [(name, "", "left", "", "", "", "", reason) for name, reason in left.items()]
    columns = ("leaf", "weights", "compressed", "values", "entropy, bits", "step of the grid", unit.heading("drop"), "why")
    table = Table("Search, on calibration data", columns, lines)
    return table if isinstance(info, QuantizedInfo) else _without(table, "step of the grid")


def _without(table: Table, column: str) -> Table:
    i = table.columns.index(column)
    return table._replace(
        columns=table.columns[:i] + table.columns[i + 1 :], rows=[line[:i] + line[i + 1 :] for line in table.rows]
    )


def markdown(table: Table) -> str:
    """The table as GitHub Markdown, without its title."""
    rule = ["---"] + ["---:"] * (len(table.columns) - 1)
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in (table.columns, rule, *table.rows)
    ]
    return "\n".join(lines) + (f"\n\n{table.caption}" if table.caption else "") + "\n"


def rich_table(table: Table) -> Any:
    """The table for a terminal."""
    title, caption = rich.text.Text(table.title), rich.text.Text(table.caption) if table.caption else None
    out = rich.table.Table(title=title, caption=caption, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(table.columns):
        out.add_column(
            rich.text.Text(column), justify="left" if i == 0 or column in ("why", "search") else "right", overflow="fold"
        )
    for row in table.rows:
        out.add_row(*map(rich.text.Text, row))  # as it is: brackets in names are no markup
    return out
