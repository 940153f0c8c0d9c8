"""What the curvature predicted of perturbations against what was measured: a picture, and where the prediction breaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from bqjax.core.task import signed
from bqjax.report.plots import GREY, as_png, as_svg, drawing, plain
from bqjax.report.tables import Table
from bqjax.sensitivity.predictions import rank_correlation
from bqjax.sensitivity.sweep_rows import SweepRow

__all__ = ["has_predictions", "prediction_picture", "prediction_table"]


def has_predictions(rows: Sequence[SweepRow]) -> bool:
    """Whether there are two rows at least with a prediction above 0 and a finite effect: enough for a picture."""
    return sum(row.predicted > 0 for row in rows) > 1


def _series(rows: Sequence[SweepRow]) -> dict[str, list[SweepRow]]:
    """Rows with a prediction by series, in their order."""
    found: dict[str, list[SweepRow]] = {}
    for row in rows:
        if row.predicted > 0:
            found.setdefault(row.candidate.tags.get("series", "candidates"), []).append(row)
    return found


def _effect(row: SweepRow, baseline: Mapping[str, float], by: str) -> float:
    """Drop of the metric ``by``."""
    return float(signed(baseline, by) - signed(row.metrics, by))


def prediction_table(rows: Sequence[SweepRow], baseline: Mapping[str, float], by: str) -> Table:
    """A line a series, and one for all: rank correlation, and the measured effect over the predicted one.

    Args:
      rows: of a sweep with a curvature.
      baseline: metrics of the unperturbed network.
      by: the metric whose drop is compared, best a loss; a leading minus means that lower is better.
    """
    found = _series(rows)
    lines = []
    for name, own in [*found.items(), *([("all", [row for rows in found.values() for row in rows])] if len(found) > 1 else [])]:
        effects = [_effect(row, baseline, by) for row in own]
        known = [(row.predicted, e) for row, e in zip(own, effects, strict=True) if math.isfinite(e)]
        rank = rank_correlation(*zip(*known, strict=True)) if len(known) > 1 else math.nan
        ratio = float(np.median([e / p for p, e in known])) if known else math.nan
        lines.append((name, str(len(known)), f"{rank:.2f}", f"{ratio:.3g}"))
    caption = (
        "Predicted: squared change of an example's outputs, second order, from the curvature at no forward pass. Measured: drop of "
        f"{by.removeprefix('-')}. The prediction orders layers as far as the rank correlation (Spearman) is near 1; where the "
        "ratio grows with the noise, effects grow faster than its square."
    )
    return Table(
        "Predicted and measured", ("series", "candidates", "rank correlation", "measured / predicted, median"), lines, caption
    )


def prediction_picture(rows: Sequence[SweepRow], baseline: Mapping[str, float], by: str, title: str) -> tuple[bytes, str]:
    """Measured against predicted effect, PNG and SVG: a point a candidate, a colour a series.

    Error bars are standard errors over examples and draws where ``by`` is the metric that rows' drops speak of. The line in grey is
    proportional, through the median of the first series.
    """
    found = _series(rows)
    colors = [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.0, 0.85, len(found))]
    effects = {name: np.array([_effect(row, baseline, by) for row in own]) for name, own in found.items()}
    finite = np.abs(np.concatenate([e[np.isfinite(e)] for e in effects.values()]))
    # Small effects of either sign stand side by side below a hundredth of the largest one.
    threshold = max(float(finite.max(initial=0.0)) / 300, 1e-12)
    with drawing(6.4, 4.6) as (picture, axes):
        axes.axhline(0, color=GREY, linewidth=0.6)
        for color, (name, own) in zip(colors, found.items(), strict=True):
            x, y = np.array([row.predicted for row in own]), effects[name]
            shown = np.isfinite(y)
            # Rows whose drop is this effect bring its error along.
            mine = [
                math.isclose(row.drop, e, rel_tol=1e-3, abs_tol=1e-6) and math.isfinite(row.error)
                for row, e in zip(own, y, strict=True)
            ]
            error = np.array([row.error if own_error else 0.0 for row, own_error in zip(own, mine, strict=True)])
            rank = rank_correlation(x[shown].tolist(), y[shown].tolist()) if shown.sum() > 1 else math.nan
            label = f"{name}: {rank:.2f}" if math.isfinite(rank) else name
            if error[shown].any():
                axes.errorbar(x[shown], y[shown], error[shown], fmt="none", ecolor=color, elinewidth=0.8, capsize=1.5)
            axes.plot(x[shown], y[shown], "o", color=color, markersize=3.5, label=plain(label))
        first = next(iter(found))
        known = np.isfinite(effects[first])
        ratio = (
            float(np.median(effects[first][known] / np.array([row.predicted for row in found[first]])[known])) if known.any() else 0
        )
        predicted = [row.predicted for own in found.values() for row in own]
        if ratio > 0:
            line = np.geomspace(min(predicted), max(predicted), 50)
            axes.plot(line, ratio * line, color=GREY, linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=threshold, linscale=0.5)
        metric = by.removeprefix("-")
        axes.set(
            title=plain(title),
            xlabel="predicted squared change of the outputs",
            ylabel=plain(f"{'increase' if by.startswith('-') else 'drop'} of {metric}"),
        )
        axes.legend(frameon=False, fontsize=8, loc="upper left", title="rank correlation", title_fontsize=8)
        return as_png(picture), as_svg(picture)
