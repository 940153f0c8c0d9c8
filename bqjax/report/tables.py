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
from bqjax.tflite.codes.search import QuantizedInfo
from bqjax.tflite.container import kept_within, searched_layers

__all__ = ["Table", "file_table", "markdown", "results_table", "rich_table", "search_table"]


class Table(NamedTuple):
    """A table of strings; the first column is text, the others are numbers and set to the right."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def results_table(comparison: Comparison) -> Table:
    """Before and after, sizes and ratios: the uncompressed network, the lossless baseline, then a line a method.

    Of several rows, those that no other beats are marked; methods that failed say so.
    """
    before, name = comparison.before, comparison.metric.removeprefix("-")
    test, calibration = _percent(before.test[name]), _percent(before.calibration[name])

    def sizes(n_bytes: int) -> tuple[str, str, str]:
        return f"{n_bytes:,}", f"{before.float_bytes / n_bytes:.2f}", f"{8 * n_bytes / before.n_params:.3f}"

    def line(row: Row) -> tuple[str, ...]:
        error = "" if row.standard_error is None else f" ± {100 * row.standard_error:.2f}"
        agreement = "" if row.agreement is None else _percent(row.agreement)
        difference = f"{100 * row.difference:+.2f}{error}"
        return _percent(row.after), difference, agreement, *sizes(row.file_bytes), _percent(row.calibration), f"{row.seconds:.1f}"

    columns = (
        "method",
        f"{name} %",
        "difference, points",
        "agreement %",
        "file bytes",
        "ratio",
        "bits/weight",
        "on calibration %",
        "seconds",
        "best",
    )
    failed = "failed", *("",) * (len(columns) - 2)
    front = comparison.front
    lines = [
        (before.original_name, test, "", "", *sizes(before.float_bytes), calibration, "", ""),
        ("zstd -19 (lossless)", test, "0.00", "100.00", *sizes(before.zstd_bytes), calibration, "", ""),
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


def file_table(info: codec.FileInfo, title: str) -> Table:
    """What ``bqjax inspect`` shows: a line a leaf, then the total; of a ``.tflite`` model also what a search did to the layers."""
    lines = []
    model = info.metadata.get("kind") == "tflite"
    searched = searched_layers(info.metadata)
    without = dict(searched)  # layers that have no leaf of their own
    size = kept_within(info.metadata)[1]
    for leaf in info.leaves:
        values = "" if leaf.k is None else str(leaf.k)
        weights = not model or leaf.name.startswith("weights/")  # the rest of a model is packed bytes
        size += leaf.size if weights else 0
        per_weight = f"{leaf.bits_per_weight:.3f}" if leaf.size and weights else ""
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        layer = leaf.name.removeprefix("weights/")
        layer = layer if layer in searched else layer.rpartition("/")[0]  # a class of its outputs
        done = _done(*searched.get(layer, ("", None))) if weights else ("", "")
        without.pop(layer, None)
        stored = leaf.kind, values, leaf.coder or "", leaf.group or ""
        lines.append((leaf.name, shape, leaf.dtype, *stored, per_weight, f"{leaf.bytes:,}", *done))
    lines += [(name, "", "", "within flatbuffer", "", "", "", "", "", *_done(*what)) for name, what in without.items()]
    rest = info.file_bytes - sum(leaf.bytes for leaf in info.leaves)
    lines.append(("structure and header", "", "", "", "", "", "", "", f"{rest:,}", "", ""))
    per_weight = f"{8 * info.file_bytes / size:.3f}" if size else ""
    lines.append(("total", f"{size:,} weights", "", "", "", "", "", per_weight, f"{info.file_bytes:,}", "", ""))
    columns = ("leaf", "shape", "dtype", "stored as", "values", "coder", "group", "bits/weight", "bytes", "drop, points", "search")
    # Columns that would be empty are left out.
    shown = len(columns) if searched else len(columns) - 2
    return Table(title, columns[:shown], [line[:shown] for line in lines])


def _done(what: str, drop: float | None) -> tuple[str, str]:
    """Cells of a searched layer."""
    return "" if drop is None else f"{100 * drop:+.2f}", what


def _distortion_table(info: RateDistortionInfo) -> Table:
    """A line a leaf, what it costs the outputs most first."""
    total, alone = sum(info.predicted.values()), info.measured_leaves
    lines = [
        (
            name,
            f"{cost:.4g}",
            f"{100 * cost / (total or 1.0):.1f}",
            f"{alone[name]:.4g}" if name in alone else "",
            f"importance alone: it {info.left[name]}" if name in info.left else "",
        )
        for name, cost in sorted(info.predicted.items(), key=lambda item: -item[1])
    ]
    changes = ", ".join(f"{name} {info.baseline[name]:.4f} to {info.final[name]:.4f}" for name in info.baseline)
    caption = (
        f"Half the squared change of an example's outputs: {total:.4g} predicted for all, {info.measured:.4g} measured on "
        f"calibration data. There, {changes}."
    )
    table = Table(f"lmbda {info.lmbda:.4g}", ("leaf", "predicted distortion", "%", "measured alone", "why"), lines, caption)
    return table if alone else _without(table, "measured alone")


def search_table(info: SearchInfo | QuantizedInfo | RateDistortionInfo) -> Table:
    """A line a searched leaf, group or layer, then the leaves left alone with the reason."""
    if isinstance(info, RateDistortionInfo):
        return _distortion_table(info)
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
            "" if drop is None else f"{100 * drop:+.2f}",
            reason,
        )
        for names, size, accepted, values, bits, drop, reason, step in found
    ]
    lines += [(name, "", "left", "", "", "", "", reason) for name, reason in left.items()]
    columns = ("leaf", "weights", "compressed", "values", "entropy, bits", "step of the grid", "drop, points", "why")
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
