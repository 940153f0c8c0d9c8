"""Interactions of perturbations as a table, CSV and a heat map."""

from __future__ import annotations

import csv
import io

import numpy as np

from bqjax.report.plots import as_png, as_svg, drawing, plain
from bqjax.report.tables import Table
from bqjax.sensitivity.pairs import Interactions

__all__ = ["interaction_csv", "interaction_map", "interaction_table"]


def _names(found: Interactions) -> list[str]:
    """A name for each candidate: its leaf, with the bin where it is one."""
    names = []
    for row in found.singles:
        c = row.candidate
        names.append(c.leaf + (f" bin {c.tags['bin']}" if "bin" in c.tags else ""))
    return names


def interaction_table(found: Interactions, level: float = 0.05) -> Table:
    """A line a pair, the largest interaction first, and what all together cost against the sums."""
    names = _names(found)
    lines = [
        (
            f"{names[r.first]} and {names[r.second]}",
            f"{found.singles[r.first].drop:.4g}",
            f"{found.singles[r.second].drop:.4g}",
            f"{r.drop:.4g}",
            f"{r.interaction:+.4g} ± {r.error:.2g}",
            f"{r.p:.3f}",
        )
        for r in sorted(found.pairs, key=lambda r: -abs(r.interaction))
    ]
    known = sum(r.p <= level for r in found.pairs)
    caption = (
        f"Drops of {found.metric.removeprefix('-')}. {known} of {len(found.pairs)} interactions differ from 0 (all of these "
        f"together at {100 * (1 - level):g} %, Holm). All {len(names)} at once: {found.together[0]:.4g} ± {found.together[1]:.2g}; "
        f"the sum of the singles is {found.sum_of_singles:.4g}, {found.excess[0]:+.4g} ± {found.excess[1]:.2g} away; with pairs "
        f"{found.sum_with_pairs:.4g}."
    )
    return Table("Interactions", ("pair", "first alone", "second alone", "both", "beyond the sum", "p"), lines, caption)


def interaction_csv(found: Interactions) -> str:
    """A line a pair, numbers in full precision."""
    out, names = io.StringIO(), _names(found)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("first", "second", "first_drop", "second_drop", "drop", "interaction", "error", "p"))
    for r in found.pairs:
        alone = (found.singles[r.first].drop, found.singles[r.second].drop)
        writer.writerow((names[r.first], names[r.second], *alone, r.drop, r.interaction, r.error, r.p))
    return out.getvalue()


def interaction_map(found: Interactions) -> tuple[bytes, str]:
    """The matrix of interactions as a heat map, PNG and SVG; a dot where a pair does not differ from 0 at 5 %."""
    names, (values, _) = _names(found), found.matrix()
    n = len(names)
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    size = max(4.0, 1.6 + 0.26 * n)
    with drawing(size + 1.2, size) as (picture, axes):
        shown = axes.imshow(values, cmap="RdBu_r", vmin=-largest or -1.0, vmax=largest or 1.0)
        for r in found.pairs:
            if not r.p <= 0.05:
                axes.plot([r.first, r.second], [r.second, r.first], ".", color="#6b7280", markersize=2)
        axes.set_xticks(range(n), [plain(name) for name in names], rotation=90, fontsize=7)
        axes.set_yticks(range(n), [plain(name) for name in names], fontsize=7)
        picture.colorbar(shown, label=plain(f"drop of {found.metric.removeprefix('-')} beyond the sum"))
        return as_png(picture), as_svg(picture)
