"""An experiment as files: tables, the picture of all rows, and one page with the pictures of a row's search and bins."""

from __future__ import annotations

from typing import Any

import numpy as np

from bqjax.core.leaves import Clustered, Scaled
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.experiment.entry import Comparison
from bqjax.experiment.runner import Outcome
from bqjax.methods.bins import SearchInfo
from bqjax.methods.rate_distortion.row_steps import to_units
from bqjax.report import plots
from bqjax.report.html import page, sections_html
from bqjax.report.pareto import pareto_plot
from bqjax.report.records import compare_csv, compare_json
from bqjax.report.tables import Table, markdown, results_table, search_table

__all__ = ["PAGE", "RESULT_NAMES", "experiment_files", "experiment_page", "row_details", "table_text"]

PAGE = "report.html"
RESULT_NAMES = ("compare.md", "compare.csv", "compare.json", "pareto.png", "pareto.svg", PAGE)


def row_details(task: Task, outcome: Outcome, files: Table) -> str:
    """What there is to see of one row, as part of a page: its search, the weights with their bins, and its file.

    Args:
      task: the network and its data.
      outcome: of the row.
      files: from :func:`bqjax.report.tables.file_table`.
    """
    sections: list[tuple[str, list[Any]]] = []
    info = outcome.info
    searched = isinstance(info, SearchInfo)
    if info is not None:
        pictures = [plots.search_path(info.layers, task.metric)] if searched else []
        sections.append((f"{outcome.row.method}: search", [search_table(info, task.metric), *pictures]))
    if searched:
        sections.append(("Sensitivity of each bin", [plots.bin_sensitivity(layer, info.rank_by) for layer in info.layers]))
    histograms = _histograms(task, outcome)
    if histograms:
        sections.append((f"{outcome.row.method}: weights and their bins", histograms))
    sections.append((f"{outcome.row.method}: the file", [files]))
    return sections_html(sections)


def _histograms(task: Task, outcome: Outcome) -> list[str]:
    originals, found = named_leaves(task.params), []
    for name, leaf in named_leaves(outcome.tree).items():
        weights, title = np.asarray(originals[name]), name
        if isinstance(leaf, Scaled):
            weights = to_units(weights, np.asarray(leaf.exponents.decode()))
            leaf, title = leaf.leaf, f"{name}, in units of its rows"
        if not isinstance(leaf, Clustered) or leaf.d > 1:
            continue
        values = np.sort(np.asarray(leaf.entries()).astype(np.float64).reshape(-1))
        edges = (values[1:] + values[:-1]) / 2
        if isinstance(outcome.info, SearchInfo):
            searched = [layer.result.edges for layer in outcome.info.layers if name in layer.names]
            edges = np.array(searched[0]) if searched else edges
        found.append(plots.weight_histogram(title, weights, edges.tolist(), values.tolist()))
    return found


def experiment_page(comparison: Comparison, command: str, details: str = "", *, picture: str | None = None) -> str:
    """The page of an experiment.

    Args:
      comparison: its rows.
      command: what made it.
      details: of a row, from :func:`row_details`.
      picture: from :func:`bqjax.report.pareto.pareto_plot`, where it has been drawn already.
    """
    rows = comparison.entries
    several = len(rows) > 1
    title = f"{comparison.task_name}: {'methods compared' if several else rows[0].label}"
    settings = Table(
        "Settings",
        ("method", "settings"),
        [(entry.label, entry.settings) for entry in rows],
        "Compressed files stand in the folder rows/." if several else "",
    )
    result = results_table(comparison), pareto_plot(comparison)[1] if picture is None else picture
    return page(title, command, [("Result", result)], *([details] if details else []), [("Settings", [settings])])


def table_text(comparison: Comparison, command: str) -> bytes:
    """The results as Markdown, below the command that made them."""
    return f"`{command}`\n\n{markdown(results_table(comparison))}".encode()


def experiment_files(comparison: Comparison, command: str, details: str = "") -> dict[str, bytes]:
    """Everything that an experiment is told by, by file name; the page comes last. Arguments are those of its page."""
    png, svg = pareto_plot(comparison)
    return {
        "compare.md": table_text(comparison, command),
        "compare.csv": compare_csv(comparison).encode(),
        "compare.json": compare_json(comparison, command).encode(),
        "pareto.png": png,
        "pareto.svg": svg.encode(),
        PAGE: experiment_page(comparison, command, details, picture=svg).encode(),
    }
