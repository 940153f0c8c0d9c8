"""How tables and pictures show a metric: shares in percent, other quantities as they are."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Unit", "unit_of"]

_NO_SHARES = frozenset({"nats", "bits", "loss", "cosine", "perplexity"})


class Unit(NamedTuple):
    """How a metric is shown.

    Attributes:
      factor: on its values.
      digits: behind the point.
      suffix: of its name, as `` %``.
      reach: differences that a picture shows, in shown values.
    """

    factor: float
    digits: int
    suffix: str
    reach: float

    @property
    def points(self) -> str:
        """What stands behind a difference: of shares `` points``."""
        return " points" if self.suffix else ""

    def heading(self, name: str) -> str:
        """What stands above differences of that name: of shares ``name, points``."""
        return f"{name},{self.points}" if self.points else name

    def value(self, shown: float) -> float:
        """Of the metric, what is shown as ``shown``: people name limits as tables show them, in points or nats."""
        return shown / self.factor

    def text(self, value: float, sign: str = "") -> str:
        """A value, with its sign where ``sign`` is ``"+"``.

        >>> unit_of("accuracy").text(0.9173), unit_of("-nats").text(1.4256), unit_of("-nats").text(0.0312, "+")
        ('91.73', '1.4256', '+0.0312')
        """
        return f"{self.factor * value:{sign}.{self.digits}f}"


_SHARE = Unit(100.0, 2, " %", 12.0)
_PLAIN = Unit(1.0, 4, "", 0.5)


def unit_of(metric: str) -> Unit:
    """Of a metric by name, with or without the sign that says lower is better."""
    return _PLAIN if metric.removeprefix("-") in _NO_SHARES else _SHARE
