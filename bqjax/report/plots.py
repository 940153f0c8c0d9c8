"""Pictures of a search as SVG text, ready to stand in an HTML page."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bqjax.methods.bins import LayerReport
from bqjax.report.units import unit_of

__all__ = ["bin_sensitivity", "search_path", "weight_histogram"]

BLUE, ORANGE, GREY = "#2563a8", "#d9730d", "#6b7280"
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "svg.fonttype": "none",
    "svg.hashsalt": "bqjax",  # identifiers, and so the file, are the same in every run
}


@contextmanager
def drawing(width: float = 5.2, height: float = 3.0) -> Iterator[tuple[Figure, Any]]:
    # A Figure made directly, without pyplot, needs no display and leaves no global state.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a pair of dollars would be a formula."""
    return text.replace("$", r"\$")


def as_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def weight_histogram(name: str, weights: np.ndarray, edges: Sequence[float], values: Sequence[float]) -> str:
    """Histogram of a leaf's weights with the edges of its bins and their values.

    Args:
      name: of the leaf.
      weights: its weights, any shape.
      edges: inner bin edges.
      values: one a bin.
    """
    weights = weights.astype(np.float32)  # NumPy's histogram takes no bfloat16
    with drawing() as (figure, axes):
        # The outermost weights in ten thousand would squeeze everything else into the middle.
        low, high = np.quantile(weights, [0.0001, 0.9999]) if weights.size else (0.0, 1.0)
        low, high = min(low, min(values)), max(high, max(values))
        if low == high:
            low, high = low - 0.5, high + 0.5
        axes.hist(weights.reshape(-1), bins=120, range=(low, high), color=BLUE, alpha=0.55)
        for i, edge in enumerate(edges):
            axes.axvline(edge, color=GREY, linewidth=0.8, label="bin edge" if i == 0 else None)
        axes.plot(values, np.zeros(len(values)), "^", color=ORANGE, clip_on=False, zorder=3, label="value of the bin")
        axes.set(
            title=plain(f"{name}: {weights.size:,} weights, {len(values)} bins"),
            xlabel="weight",
            ylabel="weights",
            xlim=(low, high),
        )
        axes.legend(frameon=False, loc="upper left")
        return as_svg(figure)


def bin_sensitivity(layer: LayerReport, rank_by: str) -> str:
    """What the network loses per bin when that bin alone is perturbed, for the last bins of a search.

    Args:
      layer: the leaf or group.
      rank_by: the metric that ranks the bins, a finer measure than accuracy; a leading minus means lower is better.
    """
    last = layer.result
    bounds = ["-∞", *[f"{e:.3g}" for e in last.edges], "∞"]
    name = rank_by.removeprefix("-")
    with drawing() as (figure, axes):
        positions = np.arange(last.n_bins)
        lost = np.nan_to_num(np.array(last.bin_rank_drops), posinf=0.0)
        axes.bar(positions, lost, color=BLUE, width=0.75)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xticks(np.arange(len(bounds)) - 0.5, bounds, rotation=60 if len(bounds) > 7 else 0)
        axes.set(
            title=f"{', '.join(layer.names)}: sensitivity of its bins",
            xlabel="bin, between its edges",
            ylabel=f"increase of {name}" if rank_by != name else f"drop of {name}",
        )
        return as_svg(figure)


def search_path(layers: Sequence[LayerReport], metric: str) -> str:
    """The metric on calibration data against bits per weight of the leaf, along the search of each leaf."""
    name, unit = metric.removeprefix("-"), unit_of(metric)
    with drawing(6.4, 3.4) as (figure, axes):
        for i, layer in enumerate(layers):
            color = f"C{i % 10}"
            for path in layer.paths:
                points = [(step.entropy, unit.factor * step.metrics[name]) for step in path]
                axes.plot(*zip(*points, strict=True), ".-", linewidth=0.7, color=color, alpha=0.6)
            end = (layer.result.entropy, unit.factor * layer.result.metrics[name])
            axes.plot(*end, "o" if layer.accepted else "x", color=color, label=plain(", ".join(layer.names)))
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.set(
            title="Along the search",
            xlabel="entropy of the indices, bits per weight",
            ylabel=plain(f"{name}{unit.suffix} on calibration data"),
        )
        return as_svg(figure)
