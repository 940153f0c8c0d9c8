"""One HTML page with everything in it: tables, pictures and the command; needs no network and no script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from bqjax.core.leaves import Clustered
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.experiment.row import Reference, Row
from bqjax.experiment.runner import Outcome
from bqjax.report import plots
from bqjax.report.tables import Table, results_table, search_table

__all__ = ["page", "search_report"]

_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
.scroll { overflow-x: auto; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #9aa5b1; }
p.caption { color: #52606d; font-size: 0.85rem; max-width: 75ch; }
code { background: #f0f2f5; padding: 0.15rem 0.35rem; border-radius: 3px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures svg { max-width: 100%; height: auto; }
"""


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in table.rows)
    caption = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    return f'<div class="scroll"><table><thead>{line(table.columns, "th")}</thead><tbody>\n{body}\n</tbody></table></div>{caption}'


def page(title: str, command: str, sections: Sequence[tuple[str, Sequence[str | Table]]]) -> str:
    """A self-contained page.

    Args:
      title: its heading.
      command: what made it.
      sections: ``(heading, parts)``; a part is a table or SVG text.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>Made by <code>{html.escape(command)}</code></p>"]
    for heading, content in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        pictures = [part for part in content if isinstance(part, str)]
        parts += [_table(part) for part in content if isinstance(part, Table)]
        if pictures:
            parts.append('<div class="pictures">' + "\n".join(pictures) + "</div>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def search_report(
    task: Task, before: Reference, outcome: Outcome, rows: Sequence[Row], files: Table, command: str, data: tuple[str, str]
) -> str:
    """The page of one experiment.

    Args:
      task: the network and its data.
      before: the uncompressed network.
      outcome: the run whose file is kept.
      rows: all rows of the table, that of ``outcome`` among them.
      files: from :func:`bqjax.report.tables.file_table`.
      command: what made it.
      data: names of the test data and of the calibration data.
    """
    originals, compressed = named_leaves(task.params), named_leaves(outcome.tree)
    sections: list[tuple[str, list[Any]]] = [
        (
            "Result",
            [results_table(task.name, task.metric, before, rows, data), plots.accuracy_against_size(before, rows, task.metric)],
        )
    ]
    histograms = []
    for name, leaf in compressed.items():
        if isinstance(leaf, Clustered) and leaf.d == 1:
            values = np.sort(np.asarray(leaf.codebook).astype(np.float64).reshape(-1))
            edges = (values[1:] + values[:-1]) / 2
            if outcome.info is not None:
                found = [layer.result.edges for layer in outcome.info.layers if name in layer.names]
                edges = np.array(found[0]) if found else edges
            histograms.append(plots.weight_histogram(name, np.asarray(originals[name]), edges.tolist(), values.tolist()))
    if outcome.info is not None:
        layers = outcome.info.layers
        sections.append(("Search", [search_table(outcome.info), plots.search_path(layers, task.metric)]))
        sections.append(("Sensitivity of each bin", [plots.bin_sensitivity(layer, outcome.info.rank_by) for layer in layers]))
    sections.append(("Weights and their bins", histograms))
    sections.append(("The file", [files]))
    return page(f"{task.name}: {outcome.row.method}", command, sections)
