"""Racing: draws and examples are spent where a sweep's question is still open (successive elimination on paired differences).

In a round every candidate that is still open is scored with new noise, and its mirror image, on one block of examples, the same for
all. What is of first order in the noise cancels between the two (antithetic variates): most of what draws differ by, and none of
the drop. A candidate's drops over rounds are one sample of noise and examples together, and two candidates are compared round by
round.
After set numbers of rounds (looks) each pair is tested by Student's t; candidates that no open pair needs are scored no more.

A statement is wrong with probability at most ``1 - confidence`` over all pairs and all looks together (Bonferroni over both,
as far as means over a block and its draws are normal). Rounds begin with every block once, in random order, before one comes again
with other noise; from then on the statement is about these examples, not about those that they were drawn from.

References:
  Even-Dar, Mannor, Mansour, "Action elimination and stopping conditions for the multi-armed bandit and reinforcement learning
  problems", JMLR 7, 2006.
  Maron, Moore, "The racing algorithm: model selection for lazy learners", Artificial Intelligence Review 11, 1997.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bqjax.sensitivity.paired import t_quantile
from bqjax.sensitivity.rounds import Rounds
from bqjax.sensitivity.sweep_rows import RaceRecord

__all__ = ["Race", "looks", "parse_until"]

_FIRST_LOOK = 8
_GROWTH = 1.4


def parse_until(text: str | float) -> str | float:
    """``"rank"``, ``"top10"`` or a positive number, from what a user wrote.

    Raises:
      ValueError: it is none of these.
    """
    if isinstance(text, str):
        word = text.strip().lower().replace(" ", "")
        if word == "rank" or re.fullmatch(r"top[1-9]\d*", word):
            return word
        try:
            text = float(word)
        except ValueError:
            raise ValueError(
                f"a race runs until 'rank', 'top10' (or another number), or a standard error such as 0.002; got {text!r}"
            ) from None
    if not 0 < text < math.inf:
        raise ValueError(f"the standard error that a race runs until must be positive and finite, got {text}")
    return float(text)


def looks(most: int) -> list[int]:
    """Numbers of rounds after which pairs are tested, up to ``most``.

    Example:
      >>> looks(30)
      [8, 12, 17, 24, 30]
    """
    found: list[int] = []
    n = float(_FIRST_LOOK)
    while n < most:
        found.append(math.ceil(n))
        n = found[-1] * _GROWTH
    return [*(n for n in found if n < most), most]


@dataclass
class Race(Rounds):
    """What is settled so far between candidates, from their drops in each round.

    Attributes:
      until: from :func:`parse_until`.
      confidence: between 0 and 1.
      most: rounds at which the race ends in any case.
      tolerance: drops that differ by less are as good as equal, in units of the metric.
    """

    until: str | float
    confidence: float
    most: int
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.confidence < 1:
            raise ValueError(f"a confidence must be between 0 and 1, got {self.confidence}")
        if not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            raise ValueError(f"a tolerance must be finite and not negative, got {self.tolerance}")
        n = len(self.candidates)
        self.looks = looks(self.most)
        self.top = int(self.until[3:]) if isinstance(self.until, str) and self.until.startswith("top") else None
        largest = max(map(len, self.sets))
        if self.top is not None and self.top >= largest:
            raise ValueError(f"the top {self.top} of {largest} candidates is no question: ask for fewer, or for 'rank'")
        if self.until == "rank" and largest < 2:
            raise ValueError("one candidate has no rank: sweep over more, or race until a standard error")
        self._ahead = np.zeros((n, n), bool)  # [i, j]: i drops more than j
        for one in self.sets:
            for i, j in itertools.product(one, one):
                self._ahead[i, j] = i not in self.out and j in self.out
        self._near = self._ahead.copy()  # [i, j]: i drops more than j, or less by no more than the tolerance
        pairs = sum(len(one) * (len(one) - 1) // 2 for one in self.sets)
        self._alpha = (1 - self.confidence) / (len(self.looks) * max(1, pairs))

    def look(self) -> None:
        """Tests every open pair on the rounds that both took part in."""
        if not isinstance(self.until, str):
            return
        for one in self.sets:
            for i, j in itertools.combinations(one, 2):
                if self._ahead[i, j] or self._ahead[j, i] or {i, j} <= self.out:
                    continue
                mean, error, rounds = self.between(i, j)
                sure = t_quantile(self._alpha, rounds - 1) * error
                if mean and (math.isinf(mean) or abs(mean) > sure):
                    self._ahead[(i, j) if mean > 0 else (j, i)] = True
                if self.tolerance:
                    self._near[i, j] |= mean + self.tolerance > sure
                    self._near[j, i] |= self.tolerance - mean > sure
            self._close(one)
            self._near |= self._ahead

    def _close(self, one: Sequence[int]) -> None:
        """Adds what follows: if i is ahead of j and j of k, i is ahead of k."""
        part = self._ahead[np.ix_(one, one)]
        for k in range(len(one)):
            part |= part[:, k, None] & part[None, k]
        self._ahead[np.ix_(one, one)] = part

    def _status(self, i: int, one: Sequence[int]) -> int:
        """1 for a candidate that is in (or settled), -1 for one that is out, 0 for one that is open."""
        if i in self.out:
            return -1
        if not isinstance(self.until, str):
            return int(self.error(i) <= self.until)
        better, worse = int(self._ahead[one, i].sum()), int(self._ahead[i, one].sum())
        if self.top is None:
            apart = self._ahead[one, i] | self._ahead[i, one] | (self._near[one, i] & self._near[i, one])
            return int(apart.sum() >= len(one) - 1)
        if self.tolerance and self.drops[i]:
            taken = sorted(one, key=lambda j: -math.inf if math.isnan(d := self.drop(j)) else d, reverse=True)
            if self._near[np.ix_(taken[: self.top], taken[self.top :])].all():
                return 1 if i in taken[: self.top] else -1
        return 1 if worse >= len(one) - self.top else -1 if better >= self.top else 0

    def open(self) -> list[int]:
        """Places of the candidates that the question still needs."""
        waiting = [i for one in self.sets for i in one if not self._status(i, one)]
        return sorted(i for i in waiting if not self.broken(i))

    def record(self, evaluations: float, of: int) -> RaceRecord:
        """How the race ended."""
        order = []
        undecided: list[tuple[int, int]] = []
        for one in self.sets:
            wins = {i: int(self._ahead[i, one].sum()) if self.until == "rank" else 0 for i in one}
            status = {i: self._status(i, one) if self.top is not None else 0 for i in one}
            means = {i: -math.inf if math.isnan(d := self.drop(i)) else d for i in one}
            order.append(tuple(sorted(one, key=lambda i: (status[i], wins[i], means[i]), reverse=True)))
            if isinstance(self.until, str):
                waiting = {i for i in one if not self._status(i, one)}
                near = self._near & self._near.T
                pairs = (
                    (i, j) for i, j in itertools.combinations(one, 2) if not (self._ahead[i, j] or self._ahead[j, i] or near[i, j])
                )
                both = self.top is not None  # for a top, a pair within it does not matter
                undecided += [
                    (i, j) for i, j in pairs if (i in waiting and j in waiting) or (not both and (i in waiting or j in waiting))
                ]
        settled = all(self._status(i, one) for one in self.sets for i in one)
        return RaceRecord(
            self.until, self.confidence, settled, self._reached(settled), tuple(order), tuple(undecided), evaluations, of
        )

    def _reached(self, settled: bool) -> str:
        if not isinstance(self.until, str):
            largest = max(self.error(i) for one in self.sets for i in one if i not in self.out)
            return f"every standard error is at most {largest:.3g}" + (
                "" if settled else f", not {self.until:g}: there are no more draws"
            )
        if self.top is None:
            pairs = sum(len(one) * (len(one) - 1) // 2 for one in self.sets)
            return f"{int(self._ahead.sum())} of {pairs} pairs are in order" + (
                "" if settled else "; the rest differ by less than can be told"
            )
        found = sum(self._status(i, one) == 1 for one in self.sets for i in one)
        text = f"{found} of the top {self.top}" + (f" in each of {len(self.sets)} sets" if len(self.sets) > 1 else "")
        waiting = len([i for one in self.sets for i in one if not self._status(i, one)])
        return f"{text} are settled" + ("" if settled else f"; {waiting} candidates differ by less than can be told")
