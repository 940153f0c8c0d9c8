"""How far compressed leaves are from what they were: leaf by leaf, the worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bqjax.core.leaves import decode
from bqjax.kmeans.fixed_levels import fixed_levels
from bqjax.report.tables import Table

__all__ = ["LeafError", "error_table", "measured", "total_error", "warnings"]

_PIECE = 1 << 15
_BAD = 0.3
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class LeafError:
    """What a compressed leaf lost.

    Attributes:
      name: of the leaf.
      error_power: sum of squared differences, over all weights but sentinels.
      power: sum of their squares.
      zeros: share of weights that are zero, before and after.
      sentinels: values far outside that are kept exactly, and count in no error.
    """

    name: str
    error_power: float
    power: float
    zeros: tuple[float, float]
    sentinels: tuple[float, ...]

    @property
    def error(self) -> float:
        """``|w - w'| / |w|`` in the 2-norm."""
        return math.sqrt(self.error_power / self.power) if self.power else 0.0


def measured(name: str, weight: np.ndarray, leaf: Any) -> LeafError:
    """Compares a leaf with what it was, in pieces, so that copies stay small.

    Args:
      name: of the leaf.
      weight: what it was.
      leaf: compressed, or an array.
    """
    levels = fixed_levels([weight])
    sentinels = levels[levels != 0]
    before, after = weight.reshape(-1), np.asarray(decode(leaf)).reshape(-1)
    error = power = 0.0
    zeros = [0, 0]
    for start in range(0, before.size, _PIECE):
        w, found = before[start : start + _PIECE], after[start : start + _PIECE]
        kept = np.ones(w.shape, bool)
        for sentinel in sentinels:
            kept &= (w != sentinel) | (found != sentinel)
        w, found = (x.astype(np.float64) for x in (w, found))
        error += float(np.square(np.where(kept, found - w, 0)).sum())
        power += float(np.square(np.where(kept, w, 0)).sum())
        zeros = [z + int(np.count_nonzero(x == 0)) for z, x in zip(zeros, (w, found), strict=True)]
    shares = tuple(z / max(before.size, 1) for z in zeros)
    return LeafError(
        name=name,
        error_power=error,
        power=power,
        zeros=(shares[0], shares[1]),
        sentinels=tuple(float(s) for s in sentinels),
    )


def total_error(errors: Sequence[LeafError]) -> float:
    """The relative error of all leaves together: leaves of large weights weigh most, so that it hides the others."""
    power = sum(e.power for e in errors)
    return math.sqrt(sum(e.error_power for e in errors) / power) if power else 0.0


def error_table(errors: Sequence[LeafError], notes: Mapping[str, str]) -> Table:
    """Leaves, the worst first; with what was kept exactly and what was done otherwise where anything was."""
    order = sorted(errors, key=lambda e: -e.error)
    rows = []
    for e in order[:_SHOWN]:
        zeros = f"{100 * e.zeros[0]:.1f} -> {100 * e.zeros[1]:.1f}" if e.zeros[0] >= 0.01 else ""
        rows.append((e.name, f"{100 * e.error:.2f}", zeros, ", ".join(f"{s:g}" for s in e.sentinels), notes.get(e.name, "")))
    columns = ("leaf", "relative error %", "zeros %", "kept exactly", "instead")
    shown = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in rows)]
    left = len(order) - len(rows)
    caption = f"{left} more leaves are at most {100 * order[_SHOWN].error:.2f} % off." if left else ""
    return Table("Leaves, worst first", tuple(columns[i] for i in shown), [tuple(row[i] for i in shown) for row in rows], caption)


def warnings(errors: Sequence[LeafError]) -> list[str]:
    """A line for each leaf that is more than 30 % off."""
    return [
        f"warning: {e.name} is {100 * e.error:.1f} % off: bound it by --rtol 0.05, give it more values, or leave it by --skip"
        for e in sorted(errors, key=lambda e: -e.error)
        if e.error > _BAD
    ]
