"""How a race ended: as a sentence, as a table, and as data."""

from __future__ import annotations

import math
from typing import Any

from bqjax.report.tables import Table
from bqjax.sensitivity.sweep_rows import RaceRecord, SweepResult, SweepRow

__all__ = ["race_data", "race_table", "race_text"]


def _record(result: SweepResult) -> RaceRecord:
    if result.race is None:
        raise ValueError("the sweep was no race: it has no until")
    return result.race


def race_text(result: SweepResult) -> str:
    """How a race ended, in a sentence."""
    race = _record(result)
    share = race.evaluations / race.of
    cost = f"{race.evaluations:,.0f} evaluations of perturbed networks, {100 * share:.0f} % of the full sweep's {race.of:,}"
    if race.budget is not None:
        return f"Race for the {race.until} within {100 * race.budget:g} % of the full sweep: {cost}; {race.reached}."
    how = "settled" if race.settled else "not settled"
    return f"Race until {race.until} at {100 * race.confidence:g} %: {how} with {cost}; {race.reached}."


def race_table(result: SweepResult) -> Table | None:
    """A line a candidate of a race with a budget: its place, its drop, and how sure its side of the border is; else None."""
    race = _record(result)
    if race.budget is None or not isinstance(race.until, str):
        return None
    top = int(race.until[3:])
    lines = []
    for one in race.order:
        for place, i in enumerate(one, 1):
            row, c = result.rows[i], result.rows[i].candidate
            # Below a half a lower bound says nothing.
            sure = f"{_down(race.sure[i])} %" if race.sure[i] > 0.5 else "open"
            lines.append((str(place), "top" if place <= top else "rest", c.leaf, c.tags.get("series", ""), _drop(row), sure))
    caption = (
        f"Drops of {result.metric.removeprefix('-')} ± standard error over rounds, each of new noise on other examples. "
        "Sure: the side of the border is right with at least this probability (paired tests, corrected for all that they might "
        "have said); open: with no more than a coin's."
    )
    return Table("Race", ("place", "side", "layer", "series", "drop", "sure, at least"), lines, caption)


def _down(sure: float) -> str:
    """Percent, never rounded up."""
    return f"{math.floor(1e4 * min(sure, 0.9999)) / 100:.2f}"


def _drop(row: SweepRow) -> str:
    if math.isnan(row.drop):
        return "left out"
    return f"{row.drop:+.3g}" + (f" ± {row.error:.2g}" if math.isfinite(row.error) else "")


def race_data(result: SweepResult) -> dict[str, Any] | None:
    """The race as JSON data, rows by leaf and series; None where the sweep was none."""
    if result.race is None:
        return None
    rows, race = result.rows, result.race

    def named(i: int) -> list[str]:
        return [rows[i].candidate.leaf, rows[i].candidate.tags["series"]]

    return {
        **race._asdict(),
        "order": [[named(i) for i in one] for one in race.order],
        "open": [[named(i), named(j)] for i, j in race.open],
        "sure": [[*named(i), sure] for i, sure in enumerate(race.sure)],
    }
