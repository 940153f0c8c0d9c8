"""How a sweep is measured: candidates program by program, every draw of them or the rounds of a race, through a journal."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core.journal import Journal, packed, unpacked
from bqjax.core.progress import Progress
from bqjax.core.task import signed
from bqjax.core.tree import check_finite, named_leaves
from bqjax.sensitivity.evaluator import Evaluator, Measured, Reached
from bqjax.sensitivity.joint import Jointly, joint_of
from bqjax.sensitivity.perturb import NoiseCandidate, Perturbation, mirrors
from bqjax.sensitivity.rounds import Rounds, run_rounds
from bqjax.sensitivity.sweep_rows import Candidate, SweepRow, point_of, row_of

__all__ = ["ROUND_DRAWS", "Count", "SweepRun", "by_program", "check_candidates", "text_digest"]

ROUND_DRAWS = 2  # of a race's round: they share a prefix, and where it has one they are noise and its mirror image
_CHUNK = 128
LEAST_SHARED = 0.75  # of the first leaf's work, what a leaf of the same program has behind it at least


def by_program(
    candidates: Sequence[Candidate], leaves: Mapping[str, Any], places: Sequence[int] | None = None
) -> list[tuple[tuple[str, Perturbation], list[int]]]:
    """Places of the candidates by leaf and perturbation, leaves in the tree's order.

    One leaf after the other, and within it one perturbation after the other: these share an executable and a prefix.
    """
    groups: dict[tuple[str, Perturbation], list[int]] = {}
    for i in range(len(candidates)) if places is None else places:
        groups.setdefault((candidates[i].leaf, candidates[i].perturbation), []).append(i)
    order = {name: i for i, name in enumerate(leaves)}
    return sorted(groups.items(), key=lambda group: order[group[0][0]])


def check_candidates(candidates: Sequence[Candidate], leaves: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` where there are no candidates, or one of a leaf that does not exist or is not finite."""
    if not len(candidates):
        raise ValueError("no candidates to sweep over")
    for candidate in candidates:
        if candidate.leaf not in leaves:
            raise ValueError(f"no leaf is named {candidate.leaf!r}; the leaves are {', '.join(leaves)}")
    for name in dict.fromkeys(c.leaf for c in candidates):
        check_finite(name, leaves[name])


def text_digest(what: Any) -> str:
    """A digest of data by its text."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


class Program(NamedTuple):
    """What one executable scores.

    Attributes:
      names: the leaves that it can perturb, one at a time.
      perturbation: of all of them.
    """

    names: tuple[str, ...]
    perturbation: Perturbation


def shared_programs(evaluator: Evaluator, params: Any, candidates: Sequence[Candidate]) -> dict[tuple[str, Perturbation], Program]:
    """The program of each leaf and perturbation. Leaves near each other share one where candidates are evaluated one at a time.

    The prefix then ends at the first of them: what lies behind it is more than three quarters the work for each. Compiling takes
    longer than scoring does for a network of many leaves. Several candidates at a time would make noise for all the leaves.
    """
    groups: dict[Perturbation, dict[str, float]] = {}
    for c in candidates:
        if c.leaf not in groups.setdefault(c.perturbation, {}):
            groups[c.perturbation][c.leaf] = evaluator.suffix_operations(params, c.leaf)
    programs: dict[tuple[str, Perturbation], Program] = {}
    for perturbation, work in groups.items():
        shared: list[str] = []
        for leaf in sorted(work, key=lambda leaf: -work[leaf]):
            alone = not work[leaf] or not evaluator.one_at_a_time(params, leaf)
            if shared and (alone or work[leaf] < LEAST_SHARED * work[shared[0]]):
                programs |= {(one, perturbation): Program(tuple(shared), perturbation) for one in shared}
                shared = []
            shared.append(leaf)
            if alone:
                programs[leaf, perturbation] = Program((leaf,), perturbation)
                shared = []
        programs |= {(one, perturbation): Program(tuple(shared), perturbation) for one in shared}
    return programs


@dataclass
class Count:
    """How many draws are finished, told to ``progress`` with the time left.

    Attributes:
      total: draws of all candidates.
      start: of the clock.
      progress: see :data:`bqjax.core.progress.Progress`.
      done: of ``total``, counting those that had not to be scored; in a race by the examples that were looked at.
      scored, resumed: perturbed networks, and those of them that the state file answered.
    """

    total: int
    start: float
    progress: Progress | None
    done: float = 0
    scored: int = 0
    resumed: int = 0
    _fresh: float = 0

    def add(self, n: int, resumed: bool, name: str, share: float = 1.0) -> None:
        """Counts ``n`` perturbed networks, scored on a share of the examples."""
        self.done += n * share
        self.scored += n
        self.resumed += n * resumed
        self._fresh += n * share * (not resumed)
        if self.progress:
            spent = time.monotonic() - self.start
            left = f"{spent / self._fresh * max(0.0, self.total - self.done):.0f} s left" if self._fresh else ""
            self.progress(int(self.done), self.total, f"{name} {left}")


@dataclass
class SweepRun:
    """One sweep on an evaluator, answered by a journal where it can be.

    Attributes:
      evaluator: on the sweep's batches; where ``told``, it says what each example adds to ``metric``.
      params, candidates, key, metric, context: of the sweep.
      journal: of everything that is measured.
      count: of what is done.
      told: see ``evaluator``.
      unused: leaves that the score does not depend on.
      programs: of each leaf and perturbation.
      evaluations: perturbed networks that were scored, in passes over all examples.
    """

    evaluator: Evaluator
    params: Any
    candidates: Sequence[Candidate]
    key: jax.Array
    metric: str
    context: Mapping[str, Any] | None
    journal: Journal
    count: Count
    told: bool
    unused: list[str] = field(default_factory=list)
    evaluations: float = 0.0

    def __post_init__(self) -> None:
        self._leaves = named_leaves(self.params)
        self.baseline: dict[str, float] = self.journal.measure("baseline", lambda: self.evaluator.baseline(self.params))
        signed(self.baseline, self.metric)  # names the metric that does not exist
        self.programs = shared_programs(self.evaluator, self.params, self.candidates)

    @cached_property
    def _own(self) -> tuple[np.ndarray, float]:
        """What each example adds to the unperturbed metric ``[n]``, and the count."""

        def measure() -> list[Any]:
            found = self.evaluator.measure_baseline(self.params)
            return [packed(found.parts[0]) if found.parts is not None else None, found.total]

        parts, count = self.journal.measure(f"examples of {self.metric}", measure)
        return unpacked(parts), count

    def _uses(self, name: str) -> bool:
        if self.evaluator.depends_on(self.params, name):
            return True
        self.unused += [] if name in self.unused else [name]
        return False

    def ordered(self, places: Sequence[int] | None = None) -> list[tuple[tuple[str, Perturbation], list[int]]]:
        """As :func:`by_program`, leaves of a program one after the other: they share a prefix, too."""
        groups = by_program(self.candidates, self._leaves, places)
        first = {name: i for i, name in reversed(list(enumerate(self._leaves)))}
        return sorted(groups, key=lambda group: min(first[name] for name in self.programs[group[0]].names))

    # --- every draw ------------------------------------------------------------------------------------------------------

    def all_draws(self) -> list[SweepRow]:
        """A row a candidate, of all its draws on all examples."""
        results: dict[int, list[dict[str, float]]] = {i: [] for i in range(len(self.candidates))}
        parts: dict[int, list[np.ndarray | None]] = {i: [] for i in results}
        for (name, perturbation), members in self.ordered():
            draws = [(i, draw) for i in members for draw in range(self.candidates[i].draws)]
            if not self._uses(name):
                for i, _ in draws:
                    results[i].append(self.baseline)
                    parts[i].append(self._own[0] if self.told else None)
                self.count.done += len(draws)
                self.count.scored += len(draws)
                continue
            for first in range(0, len(draws), _CHUNK):
                chunk = draws[first : first + _CHUNK]
                answered = self.journal.answered
                metrics, own = self._chunk(name, perturbation, [(self.candidates[i], draw) for i, draw in chunk])
                for j, (i, _) in enumerate(chunk):
                    results[i].append(metrics[j])
                    parts[i].append(None if own is None else own[j])
                self.count.add(len(chunk), self.journal.answered > answered, name)
        self.evaluations = float(self.count.scored)
        return [
            row_of(c, results[i], self.baseline, self.metric, self.differences(parts[i])) for i, c in enumerate(self.candidates)
        ]

    def _chunk(
        self, name: str, perturbation: Perturbation, chunk: Sequence[tuple[Candidate, int]]
    ) -> tuple[list[dict[str, float]], np.ndarray | None]:
        """Metrics of some draws of one program, and each example's parts in them ``[draws, n]``."""
        asked = [(candidate.described(), draw) for candidate, draw in chunk]
        earlier = text_digest(asked)  # of journals from before magnitudes shared their noise: other draws, as good as any
        if earlier in self.journal:
            return self.journal.measure(earlier, list), None

        def measure() -> Measured:
            points = [(name, point_of(candidate, draw, self.key, self._leaves[name].dtype)) for candidate, draw in chunk]
            return self.measure(self.programs[name, perturbation], points)

        return self.journaled(["common noise", self.metric if self.told else None, *asked], measure)

    def journaled(self, asked: Any, measure: Callable[[], Measured]) -> tuple[list[dict[str, float]], np.ndarray | None]:
        """Metrics and examples' parts ``[candidates, n]`` of a measurement, from the journal where that was asked before."""

        def found() -> dict[str, Any]:
            new = measure()
            return {"metrics": new.metrics, "parts": None if new.parts is None else packed(new.parts)}

        value = self.journal.measure(text_digest(asked), found)
        return value["metrics"], None if value["parts"] is None else unpacked(value["parts"])

    def measure(
        self,
        program: Program,
        asked: Sequence[tuple[str, NoiseCandidate]],
        only: Sequence[int] | None = None,
        reached: Reached | None = None,
        params: Any = None,
    ) -> Measured:
        """Draws of candidates of one program, each with its leaf, on all batches or some; ``params`` for the sweep's own."""
        params = self.params if params is None else params
        names, perturbation = program
        engine = partial(self.evaluator.measure, params, names, only=only, reached=reached)
        if len(names) == 1:
            return engine(perturbation, [point for _, point in asked], context=self.context)
        own = dict.fromkeys(names) if self.context is None else self.context
        context = {leaf: (np.int32(i), own[leaf]) for i, leaf in enumerate(names)}
        joint = [joint_of([point], [names.index(name)]) for name, point in asked]
        return engine(Jointly(perturbation), joint, context=context)

    def differences(self, parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """``[draws, n]`` of what each example adds to the drop of each draw."""
        known = [p for p in parts if p is not None]
        if len(known) < len(parts):
            return None
        own, count = self._own
        sign = -1 if self.metric.startswith("-") else 1
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(sign * (own[None] - np.stack(known)) * np.float32(len(own) / count))

    # --- rounds ----------------------------------------------------------------------------------------------------------

    def raced(self, race: Rounds) -> list[SweepRow]:
        """A row a candidate, of the rounds that it took part in."""
        blocks = self.journal.measure("blocks", lambda: [list(b) for b in self.evaluator.batch_metrics(self.params)])
        full = [b for b, (_, n) in enumerate(blocks) if n]
        examples = sum(n for _, n in blocks)
        changes: list[dict[str, list[float]]] = [{name: [] for name in self.baseline} for _ in self.candidates]

        def block_of(t: int) -> int:
            own = jax.random.fold_in(jax.random.fold_in(self.key, len(blocks)), t // len(full))
            return full[int(jax.random.permutation(own, len(full))[t % len(full)])]

        def score(places: list[int], first: int, last: int) -> None:
            order = [block_of(t) for t in range(first, last)]
            race.weights += [blocks[b][1] for b in order]
            for (name, perturbation), members in self.ordered(places):
                share = sum(blocks[b][1] for b in order) / examples / len(order)
                rounds = None
                answered = self.journal.answered
                if self._uses(name):
                    chosen = [self.candidates[i] for i in members]
                    asked = ["race", len(blocks), order, first, [c.described() for c in chosen]]
                    rounds = self.journal.measure(
                        text_digest(asked), partial(self._rounds, name, perturbation, chosen, order, first)
                    )
                for j, i in enumerate(members):
                    for t, b in enumerate(order):
                        own = [blocks[b][0]] if rounds is None else rounds[t][j * ROUND_DRAWS : (j + 1) * ROUND_DRAWS]
                        means = {m: float(np.mean([x[m] for x in own])) for m in self.baseline}
                        race.drops[i].append(float(signed(blocks[b][0], self.metric) - signed(means, self.metric)))
                        for m, value in means.items():
                            changes[i][m].append(blocks[b][1] * (value - blocks[b][0][m]))
                if rounds is not None:
                    n = len(members) * len(order) * ROUND_DRAWS
                    self.evaluations += n * share
                    self.count.add(n, self.journal.answered > answered, name, share)

        run_rounds(race, score)
        return [self._raced_row(race, i, changes[i]) for i in range(len(self.candidates))]

    def _rounds(
        self, name: str, perturbation: Perturbation, chosen: Sequence[Candidate], order: Sequence[int], first: int
    ) -> list[list[dict[str, float]]]:
        """Metrics of the draws of each round, candidate by candidate."""
        found = []
        dtype = self._leaves[name].dtype
        for t, block in enumerate(order, first):
            # Noise and its mirror image: what is of first order in it cancels, which is most of what draws differ by.
            draws = [(t, False), (t, True)] if mirrors(perturbation) else [(ROUND_DRAWS * t + i, False) for i in range(ROUND_DRAWS)]
            points = [(name, point_of(c, draw, self.key, dtype, mirrored=mirrored)) for c in chosen for draw, mirrored in draws]
            found.append(self.measure(self.programs[name, perturbation], points, [block]).metrics)
        return found

    def _raced_row(self, race: Rounds, i: int, changes: Mapping[str, Sequence[float]]) -> SweepRow:
        drops, error = tuple(race.drops[i]), race.error(i)
        if not drops:
            nothing = dict.fromkeys(self.baseline, float("nan"))
            return SweepRow(self.candidates[i], nothing, float("nan"), float("nan"), ())
        weight = sum(race.weights[: len(drops)])
        metrics = {m: self.baseline[m] + sum(changes[m]) / weight for m in self.baseline}
        return SweepRow(self.candidates[i], metrics, race.drop(i), error, drops, error=error)
