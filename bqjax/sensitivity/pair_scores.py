"""How pairs of perturbations are scored: the later one of a pair by the sweep's own program, on top of the earlier one.

With the earlier leaf perturbed the network is computed once to the next leaf, from there to the one after, and so on; at each
of them the sweep's program for that leaf goes to the end. A pair then costs what lies behind its *later* leaf, a third of the
network on average, and what is compiled besides the sweep's programs are the pieces between two leaves.

Where this would leave devices idle (several of them, or candidates evaluated side by side), pairs whose earlier leaf is the same
are candidates of one program that perturbs both; so are two parts of one leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from bqjax.core.tree import named_leaves, replace
from bqjax.sensitivity.evaluator import Measured, Reached
from bqjax.sensitivity.joint import Jointly, joint_of
from bqjax.sensitivity.perturb import NoiseCandidate, Perturbation
from bqjax.sensitivity.sweep_rows import point_of
from bqjax.sensitivity.sweep_run import Program, SweepRun

__all__ = ["PairScores"]

_CHUNK = 128

Member = tuple[int, ...]
"""Places of the candidates that are perturbed at once."""


class PairScores:
    """Scores of several candidates at once, under the noise that each has alone.

    Args:
      run: the sweep of the candidates, which have one perturbation and one number of draws.
    """

    def __init__(self, run: SweepRun):
        self._run = run
        self._leaves = named_leaves(run.params)
        self._draws, self._perturbation = run.candidates[0].draws, run.candidates[0].perturbation
        self._depth = {c.leaf: run.evaluator.suffix_operations(run.params, c.leaf) for c in run.candidates}
        self._base: Reached | None = None

    def units(self, asked: Sequence[Member]) -> Iterator[tuple[list[Member], Callable[[], Measured]]]:
        """Pairs that are scored at a time, and how: candidates of the result are the draws of each, one pair after the other."""
        first: dict[int, list[Member]] = {}
        joint: dict[str, list[Member]] = {}
        for member in asked:
            # Where two are used at once, or one leaf has both, the first of the pair is the earlier.
            earlier = max(member, key=lambda i: self._depth[self._leaf(i)])
            if self._chains(member, earlier):
                first.setdefault(earlier, []).append(member)
            else:
                joint.setdefault(self._leaf(earlier), []).append(member)
        order = {name: at for at, program in enumerate(self._programs()) for name in program.names}
        for i in sorted(first, key=lambda i: order[self._leaf(i)]):
            yield first[i], partial(self._chained, i, first[i])
        per_chunk = max(1, _CHUNK // self._draws)
        for leaf, members in joint.items():
            # One program for all of them: places of the leaves are numbers of a candidate.
            names = list(dict.fromkeys([leaf, *(self._leaf(i) for member in members for i in member)]))
            for at in range(0, len(members), per_chunk):
                chunk = members[at : at + per_chunk]
                yield chunk, partial(self._jointly, names, chunk)

    def together(self, member: Member) -> Measured:
        """All candidates of ``member`` at once, a candidate of the result a draw."""
        measured = [self._run.evaluator.measure_whole(self._perturbed(member, draw)) for draw in range(self._draws)]
        parts = [m.parts for m in measured if m.parts is not None]
        return Measured([m.metrics[0] for m in measured], np.concatenate(parts) if parts else None, measured[0].total)

    def _leaf(self, i: int) -> str:
        return self._run.candidates[i].leaf

    def _point(self, i: int, draw: int) -> NoiseCandidate:
        return point_of(self._run.candidates[i], draw, self._run.key, self._leaves[self._leaf(i)].dtype)

    def _programs(self) -> list[Program]:
        """Of the sweep, in the order of the network."""
        programs = dict.fromkeys(self._run.programs.values())
        return sorted(programs, key=lambda program: -max(self._depth[name] for name in program.names))

    def _chains(self, member: Member, earlier: int) -> bool:
        evaluator = self._run.evaluator
        apart = len({self._leaf(i) for i in member}) == len(member)
        return apart and evaluator.n_devices == 1 and evaluator.one_at_a_time(self._run.params, self._leaf(earlier))

    def _perturbed(self, member: Member, draw: int) -> Any:
        """The parameters with some candidates' perturbations."""
        if self._run.told:
            self._run.evaluator.padding(self._run.params)  # before the network is asked that may be broken
        new = {}
        for name in dict.fromkeys(map(self._leaf, member)):
            own = [self._point(i, draw) for i in member if self._leaf(i) == name]
            new[name] = _jitted(self._perturbation)(self._leaves[name], joint_of(own, [0] * len(own)))
        return replace(self._run.params, new)

    def _chained(self, first: int, members: Sequence[Member]) -> Measured:
        """Pairs of one candidate with others that are used later, or about as early."""
        run = self._run
        own = run.programs[self._leaf(first), self._perturbation]
        if self._base is None or self._base.names != own.names:
            self._base = run.evaluator.reach(run.params, own.names, self._base)
        others: dict[Program, list[int]] = {program: [] for program in self._programs()}
        for member in members:
            (other,) = (i for i in member if i != first)
            others[run.programs[self._leaf(other), self._perturbation]].append(other)
        found: dict[tuple[int, int], tuple[dict[str, float], Any]] = {}
        for draw in range(self._draws):
            params, reached = self._perturbed((first,), draw), self._base
            for program, later in others.items():
                if not later:
                    continue
                if program != own:
                    reached = run.evaluator.reach(params, program.names, reached)
                points = [(self._leaf(i), self._point(i, draw)) for i in later]
                measured = run.measure(program, points, reached=reached, params=params)
                for at, i in enumerate(later):
                    found[i, draw] = measured.metrics[at], None if measured.parts is None else measured.parts[at]
        rows = [found[i, draw] for member in members for i in member if i != first for draw in range(self._draws)]
        parts = None if rows[0][1] is None else np.stack([own for _, own in rows])
        return Measured([metrics for metrics, _ in rows], parts, measured.total)

    def _jointly(self, names: Sequence[str], members: Sequence[Member]) -> Measured:
        """Pairs as candidates of one program that perturbs some leaves."""
        asked = []
        for member in members:
            places = [names.index(self._leaf(i)) for i in member]
            asked += [joint_of([self._point(i, draw) for i in member], places) for draw in range(self._draws)]
        places_of = {name: (np.int32(i), None) for i, name in enumerate(names)}
        return self._run.evaluator.measure(self._run.params, names, Jointly(self._perturbation), asked, context=places_of)


@cache
def _jitted(perturbation: Perturbation) -> Callable[..., jax.Array]:
    return jax.jit(Jointly(perturbation))
