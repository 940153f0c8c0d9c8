"""The candidates that drop most, as well as a fixed number of evaluations can tell: successive accepts and rejects.

A race (:mod:`bqjax.sensitivity.racing`) ends when its answer is certain, which may cost more than there is. Here the cost is given.
Rounds are those of a race: noise and its mirror image on one block of examples, the same for all candidates that are left. After
each phase the candidate that stands farthest from the border between the top and the rest, in standard errors of the paired
difference, is accepted or rejected for good, and the rounds that it would have taken go to those near the border. Phase ``k`` of
``n`` candidates ends after a number of rounds that grows with ``1 / (n + 1 - k)``, such that all phases together cost the budget.

The answer comes with how sure it is, candidate by candidate. To be in the top of ``m`` among ``n`` is to be ahead of ``n - m``
others. Were it not so, ``m`` others would be at least as good, and the least certain of the comparisons that it won would be
against one of these: its p-value (Student's t over common rounds) times ``m`` is that of the whole (a partial conjunction). It is
taken two-sided, which makes up for the number of common rounds, which depends on the drops.

References:
  Bubeck, Wang, Viswanathan, "Multiple identifications in multi-armed bandits", ICML 2013 (arXiv 1205.3181); there the gap alone
  decides, here it is divided by its error, since noise differs between layers by a factor of ten.
  Benjamini, Heller, "Screening for partial conjunction hypotheses", Biometrics 64(4), 2008.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtr

from bqjax.sensitivity.rounds import Rounds
from bqjax.sensitivity.sweep_rows import RaceRecord

__all__ = ["LEAST_ROUNDS", "FixedBudget", "phases"]

LEAST_ROUNDS = 3  # before the first candidate is accepted or rejected


def phases(n: int, total: float) -> list[int]:
    """Rounds after which one more of ``n`` candidates is accepted or rejected, for ``total`` rounds of single candidates.

    Example:
      >>> phases(4, 60)
      [9, 12, 18]
    """
    return [max(1, math.ceil((total - n) / (_scale(n) * (n + 1 - k)))) for k in range(1, n)]


def _scale(n: int) -> float:
    """Rounds of all phases together, in those of a first phase with all ``n`` candidates."""
    return 0.5 + sum(1 / i for i in range(2, n + 1))


def _total(n: int) -> float:
    """The fewest rounds of single candidates of which :func:`phases` has ``LEAST_ROUNDS`` in the first."""
    return n + (LEAST_ROUNDS - 1) * _scale(n) * n * (1 + 1e-9)


@dataclass
class FixedBudget(Rounds):
    """The top of each set of candidates within a budget.

    Attributes:
      top: how many of each set are asked for. A set of no more than that is no question, and takes its rounds whole.
      budget: the part of the full sweep's evaluations that may be spent.
      most: rounds of one candidate that cost what the full sweep spends on it.
      confidence: at which a statement counts as sure.
    """

    top: int
    budget: float
    most: int
    confidence: float = 0.95
    taken: list[int] = field(init=False, default_factory=list)
    refused: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.confidence < 1:
            raise ValueError(f"a confidence must be between 0 and 1, got {self.confidence}")
        if not 0 < self.budget <= 1:
            raise ValueError(f"a budget is a part of the full sweep's evaluations, above 0 and at most 1; got {self.budget}")
        if self.top >= (largest := max(map(len, self.sets))):
            raise ValueError(f"the top {self.top} of {largest} candidates is no question: ask for fewer")
        self.refused = [i for one in self.sets for i in one if i in self.out]
        self._left = {i for one in self.sets for i in one if i not in self.out}
        self._phases: list[list[int]] = []
        for one in self.sets:
            n, spent = len([i for i in one if i not in self.out]), self.budget * len(one) * self.most
            if len(one) > self.top and n > 1 and spent < _total(n):
                raise ValueError(self._too_small(n, spent, len(one)))
            self._phases.append(phases(n, spent) if len(one) > self.top and n > 1 else [max(1, int(self.budget * self.most))])
        self.looks = sorted(set(itertools.chain.from_iterable(self._phases)))

    def _too_small(self, n: int, spent: float, of: int) -> str:
        needed = math.ceil(1e3 * _total(n) / (of * self.most)) / 1e3
        remedy = f"pass budget={needed:g} or more" if needed <= 1 else "give the candidates more draws, or the sweep more examples"
        return (
            f"a budget of {self.budget:g} pays for {spent:.0f} rounds of single candidates, and the top {self.top} of {n} need "
            f"{math.ceil(_total(n))}, so that none is accepted or rejected before it was in {LEAST_ROUNDS}: {remedy}"
        )

    def look(self) -> None:
        """Accepts or rejects one candidate of each set for each of its phases that ends here."""
        done = max(len(self.drops[i]) for i in self._left) if self._left else 0
        for one, ends in zip(self.sets, self._phases, strict=True):
            if len(one) <= self.top:
                self._left -= set(one) if ends[0] == done else set()
                continue
            for _ in range(ends.count(done)):
                self._settle_one(one)

    def _settle_one(self, one: Sequence[int]) -> None:
        left = self._ordered([i for i in one if i in self._left])
        inside = self.top - len([i for i in one if i in self.taken])
        if 0 < inside < len(left):
            distance = [self._distance(i, left[inside] if at < inside else left[inside - 1]) for at, i in enumerate(left)]
            at = int(np.argmax(distance))
            (self.taken if at < inside else self.refused).append(left[at])
            self._left.discard(left[at])
            inside -= at < inside
            left.pop(at)
        if not 0 < inside < len(left):  # what is left is all on one side
            (self.taken if inside else self.refused).extend(left)
            self._left -= set(left)

    def _ordered(self, places: Sequence[int]) -> list[int]:
        """Places by their drops, the largest first; a broken network before all others."""
        return sorted(
            places, key=lambda i: math.inf if self.broken(i) else self.drop(i) if self.drops[i] else -math.inf, reverse=True
        )

    def _distance(self, i: int, other: int) -> float:
        """How far two candidates are apart, in standard errors."""
        mean, error, _ = self.between(i, other)
        if mean == 0:
            return 0.0
        return abs(mean) / error if error > 0 else math.inf

    def open(self) -> list[int]:
        """Places of the candidates that are neither accepted nor rejected."""
        return sorted(i for i in self._left if not self.broken(i))

    def members(self, one: Sequence[int]) -> list[int]:
        """The top of a set, the largest drop first: who was accepted, and the best of who is left."""
        if len(one) <= self.top:
            return self._ordered(one)
        taken = [i for i in one if i in self.taken]
        left = self._ordered([i for i in one if i in self._left])
        return self._ordered([*taken, *left[: self.top - len(taken)]])

    def sure(self, i: int, members: Sequence[int], others: Sequence[int]) -> float:
        """How sure it is that a candidate is on its side of the border, given who else is on which.

        It is on its side if it is ahead of all on the other one (or behind all): the least certain of these comparisons counts, as
        many times as its own side has members. Candidates that were left out are taken to be where they are; of these nothing is
        sure.
        """
        if i in self.out:
            return 0.0
        own, against = (members, others) if i in members else (others, members)
        sign = 1 if i in members else -1
        worst = max((self._p(i, j, sign) for j in against if j not in self.out), default=0.0)
        return max(0.0, 1 - worst * len(own))

    def _p(self, i: int, j: int, sign: int) -> float:
        """p-value of a candidate being ahead of another, or behind it."""
        mean, error, rounds = self.between(i, j)
        if rounds < 2 and not math.isinf(mean):
            return 1.0
        if error == 0:
            return 0.0 if sign * mean > 0 else 1.0
        return min(1.0, 2 * float(stdtr(rounds - 1, -sign * mean / error)))

    def record(self, evaluations: float, of: int) -> RaceRecord:
        """How it ended."""
        order, open_pairs, sure = [], [], [1.0] * len(self.candidates)
        for one in self.sets:
            members = self.members(one)
            others = self._ordered([i for i in one if i not in members])
            order.append((*members, *others))
            for i in one if others else ():
                sure[i] = self.sure(i, members, others)
            doubtful = {i for i in one if i not in self.out and not sure[i] >= self.confidence}
            open_pairs += [(i, j) for i in members for j in others if {i, j} <= doubtful]
        asked = [one for one in self.sets if len(one) > self.top]
        firm = sum(sure[i] >= self.confidence for one in asked for i in self.members(one))
        text = f"{firm} of the {self.top * len(asked)} layers in the top are sure at {100 * self.confidence:g} %"
        doubt = sum(not sure[i] >= self.confidence for one in asked for i in one if i not in self.out)
        text += (
            f"; {doubt} candidates are on their side of the border as far as {100 * self.budget:g} % of the evaluations can tell"
        )
        return RaceRecord(
            f"top{self.top}",
            self.confidence,
            not doubt,
            text,
            tuple(order),
            tuple(open_pairs),
            evaluations,
            of,
            self.budget,
            tuple(sure),
        )
