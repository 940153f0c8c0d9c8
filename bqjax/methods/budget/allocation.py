"""Rate-distortion allocation under a budget: which option each layer takes, from the bytes and the distortion of each.

Every unit (a leaf, or leaves that share a codebook) has options, each with its bytes and its distortion. Distortions are taken to
add up over units, as small independent errors of a network's outputs nearly do. A plan names one option a unit.

On the lower convex hull of a unit's curve each step to the right buys distortion with bytes at a slope, and slopes fall. Taking
the steps of all units in the order of their slopes gives every plan that is best for some Lagrangian weight ``p`` of a byte, the
minima of

    ``sum_u distortion_u(option) + p * bytes_u(option)``;

these are optimal at their own size (Everett 1963). Between two of them a rest of the budget is filled with whatever single
change helps most.

References:
  Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources", Operations
  Research 11(3), 1963.
  Shoham, Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Transactions on ASSP 36(9), 1988.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Curves", "Option", "Plan", "hull", "plan_for_distortion", "plan_for_size", "plans", "total"]


class Option(NamedTuple):
    """What one way to store a unit costs.

    Attributes:
      bytes: in the file.
      distortion: to the network, by itself; comparable between units.
    """

    bytes: float
    distortion: float


Curves = Mapping[str, Sequence[Option]]
"""Options by unit."""

Plan = dict[str, int]
"""The number of the option that each unit takes."""


def total(curves: Curves, plan: Mapping[str, int]) -> Option:
    """Bytes and distortion of a plan."""
    chosen = [curves[unit][i] for unit, i in plan.items()]
    return Option(math.fsum(o.bytes for o in chosen), math.fsum(o.distortion for o in chosen))


def _check(curves: Curves) -> None:
    if not curves:
        raise ValueError("there is nothing to plan: no unit has options")
    for unit, options in curves.items():
        if not len(options):
            raise ValueError(f"unit {unit!r} has no options")
        for option in options:
            if not (0 <= option.bytes < math.inf and math.isfinite(option.distortion)):
                raise ValueError(
                    f"unit {unit!r} has an option of {option.bytes} bytes and distortion {option.distortion}: both must be finite"
                )


def hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull: ascending in bytes, descending in distortion, with falling slopes.

    >>> hull([Option(0, 10), Option(4, 7), Option(5, 0), Option(9, 1), Option(5, 3)])
    [0, 2]
    """
    order = sorted(range(len(options)), key=lambda i: (options[i].bytes, options[i].distortion, i))
    kept: list[int] = []
    for i in order:
        if kept and options[i].distortion >= options[kept[-1]].distortion:
            continue  # as large or larger, and no better
        while len(kept) > 1 and _slope(options[kept[-2]], options[kept[-1]]) <= _slope(options[kept[-1]], options[i]):
            kept.pop()
        kept.append(i)
    return kept


def _slope(a: Option, b: Option) -> float:
    """Distortion saved a byte on the way from ``a`` to the larger ``b``."""
    more = b.bytes - a.bytes
    return (a.distortion - b.distortion) / more if more > 0 else math.inf


def plans(curves: Curves) -> list[Plan]:
    """The plans on the lower convex hull of the sums, from the smallest to that of least distortion; each is best for some weight
    of a byte, and differs from the one before in one unit's step.

    Raises:
      ValueError: no units, a unit without options, bytes or distortions that are not finite.
    """
    _check(curves)
    hulls = {unit: hull(options) for unit, options in curves.items()}
    steps = [
        (-_slope(curves[unit][a], curves[unit][b]), number, unit, b)
        for unit, kept in hulls.items()
        for number, (a, b) in enumerate(itertools.pairwise(kept))
    ]
    found = [{unit: kept[0] for unit, kept in hulls.items()}]
    # Slopes fall along a hull, so that a unit's steps stay in their order; equal ones are told apart by their number.
    for _, _, unit, to in sorted(steps):
        found.append({**found[-1], unit: to})
    return found


def plan_for_size(curves: Curves, target: float) -> Plan:
    """Rate-constrained allocation: the plan of least distortion found within ``target`` bytes.

    Raises:
      ValueError: no plan is as small; the message says the smallest size. See also :func:`plans`.
    """
    path = plans(curves)
    smallest = total(curves, path[0]).bytes
    if smallest > target:
        raise ValueError(f"no plan fits into {target:,.0f} bytes: the smallest takes {smallest:,.0f}")
    fitting = [plan for plan in path if total(curves, plan).bytes <= target]
    return _filled(curves, fitting[-1], target, spent=0, saved=1)


def _filled(curves: Curves, plan: Plan, limit: float, *, spent: int, saved: int) -> Plan:
    """The plan with the rest of a limit spent, one change of one unit after the other, on what saves most.

    ``spent`` and ``saved`` are places in :class:`Option`: what the limit is of, and what is to become less.
    """
    plan = dict(plan)
    while True:
        spare = limit - total(curves, plan)[spent]
        changes = [
            (options[plan[unit]][saved] - option[saved], unit, i)
            for unit, options in curves.items()
            for i, option in enumerate(options)
            if option[spent] - options[plan[unit]][spent] <= spare and option[saved] < options[plan[unit]][saved]
        ]
        if not changes:
            return plan
        _, unit, i = max(changes, key=lambda c: c[0])
        plan[unit] = i


def plan_for_distortion(curves: Curves, limit: float) -> Plan:
    """Distortion-constrained allocation: the smallest plan found whose distortion is at most ``limit``.

    Raises:
      ValueError: no plan has so little distortion; the message says the least. See also :func:`plans`.
    """
    path = plans(curves)
    least = total(curves, path[-1]).distortion
    if least > limit:
        raise ValueError(f"no plan has at most {limit:.4g} of distortion: the least is {least:.4g}")
    fitting = next(plan for plan in path if total(curves, plan).distortion <= limit)
    return _filled(curves, fitting, limit, spent=1, saved=0)
