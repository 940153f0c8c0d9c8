"""Rounds of noise on blocks of examples, the same for all candidates that take part: what races are decided on."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bqjax.sensitivity.sweep_rows import Candidate, RaceRecord

__all__ = ["Rounds", "comparable", "run_rounds", "weighted_mean"]


@dataclass
class Rounds(abc.ABC):
    """Drops of candidates in each round that they took part in, and the question that is asked of them.

    Attributes:
      candidates: all of them.
      out: places that are left out from the start.
      looks: numbers of rounds after which :meth:`look` is called.
      sets: places that are compared among themselves.
      drops: of each candidate, by round; who leaves does not come back.
      weights: examples of each round.
    """

    candidates: Sequence[Candidate]
    out: frozenset[int] = field(default=frozenset(), kw_only=True)
    looks: list[int] = field(init=False)
    sets: list[list[int]] = field(init=False)
    drops: list[list[float]] = field(init=False)
    weights: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.drops = [[] for _ in self.candidates]
        self.sets = comparable(self.candidates)

    @abc.abstractmethod
    def look(self) -> None:
        """Draws conclusions from the rounds so far."""

    @abc.abstractmethod
    def open(self) -> list[int]:
        """Places of the candidates that the question still needs."""

    @abc.abstractmethod
    def record(self, evaluations: float, of: int) -> RaceRecord:
        """How the race ended."""

    def between(self, i: int, j: int) -> tuple[float, float, int]:
        """Mean difference over common rounds, its standard error, and their number; infinite where one network is broken."""
        rounds = min(len(self.drops[i]), len(self.drops[j]))
        if not rounds:
            return 0.0, math.inf, 0
        a, b = (np.array(self.drops[k][:rounds]) for k in (i, j))
        broken = [not np.isfinite(x).all() for x in (a, b)]
        if any(broken):
            return (0.0 if all(broken) else math.inf if broken[0] else -math.inf), 0.0, rounds
        return (*weighted_mean(a - b, self.weights[:rounds]), rounds)

    def broken(self, i: int) -> bool:
        """Whether a candidate's network is broken: it stays so."""
        return not all(map(math.isfinite, self.drops[i]))

    def error(self, i: int) -> float:
        """Standard error of a candidate's drop over its rounds."""
        return weighted_mean(np.array(self.drops[i]), self.weights[: len(self.drops[i])])[1] if len(self.drops[i]) > 1 else math.inf

    def drop(self, i: int) -> float:
        """A candidate's drop, NaN where it was left out."""
        return weighted_mean(np.array(self.drops[i]), self.weights[: len(self.drops[i])])[0] if self.drops[i] else math.nan


def comparable(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Places of the candidates that are ranked among themselves: those of one figure and series, or all where there are none."""
    sets: dict[tuple[str | None, str | None], list[int]] = {}
    for i, c in enumerate(candidates):
        sets.setdefault((c.tags.get("figure"), c.tags.get("series")), []).append(i)
    return list(sets.values())


def weighted_mean(values: np.ndarray, weights: Sequence[float]) -> tuple[float, float]:
    """Mean of rounds that count by their examples, and its standard error.

    Example:
      >>> weighted_mean(np.array([1.0, 3.0]), [1.0, 1.0])
      (2.0, 1.0)
    """
    w = np.asarray(weights, np.float64)
    mean = float((w * values).sum() / w.sum())
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.inf
    n = len(values)
    return mean, math.sqrt(float(np.square(w * (values - mean)).sum()) * n / (n - 1)) / float(w.sum())


def run_rounds(race: Rounds, score: Callable[[list[int], int, int], None]) -> None:
    """Runs a race to its end: ``score(places, first, last)`` adds the drops of these rounds to the candidates at some places."""
    done = 0
    for at in race.looks:
        # Of a set that is no question, too, one look is taken.
        waiting = race.open() if done else [i for i in range(len(race.candidates)) if i not in race.out]
        if not waiting:
            return
        score(waiting, done, at)
        done = at
        race.look()
