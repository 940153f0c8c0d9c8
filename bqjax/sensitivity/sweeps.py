"""Perturbation sweeps over many leaves: the tables behind the paper's figures 2, 3 and 5.

A sweep is a list of :class:`Candidate`; :func:`sweep` scores them leaf by leaf on the engine of
:mod:`bqjax.sensitivity.evaluator` and averages over draws. What was finished is kept in a state file, so that a sweep of
hours survives an interruption.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-A and III-C.
"""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from bqjax.core.journal import Journal, digest
from bqjax.core.progress import Progress
from bqjax.core.task import Score, signed
from bqjax.core.tree import check_finite, named_leaves
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.perturb import Kind, Noise, NoiseCandidate, Perturbation
from bqjax.sensitivity.processes import SharedJournal, check_same

__all__ = ["Candidate", "SweepResult", "SweepRow", "sweep"]

_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One perturbation to evaluate, averaged over draws.

    Attributes:
      leaf: name of the leaf.
      perturb: a kind of :class:`~bqjax.sensitivity.perturb.Noise`, or a perturbation that takes a
        :class:`~bqjax.sensitivity.perturb.NoiseCandidate`. Its ``repr`` tells it from others, in a state file too: make
        it a frozen dataclass, or a function of a module.
      magnitude: of the perturbation, in the units of its kind; not negative.
      lower, upper: bounds of the bin, ``lower <= w < upper``; all weights by default.
      draws: independent draws.
      tags: kept with the result, e.g. ``{"bin": "3"}``.
    """

    leaf: str
    perturb: Kind | Perturbation = "gaussian"
    magnitude: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf
    draws: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.magnitude >= 0 and math.isfinite(self.magnitude)) and self.perturb != "collapse":
            raise ValueError(f"leaf {self.leaf!r}: magnitude must be finite and not negative, got {self.magnitude}")
        if self.draws < 1:
            raise ValueError(f"leaf {self.leaf!r}: draws must be at least 1, got {self.draws}")
        self._described()  # an unknown kind is refused here, and what has no lasting name

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation itself."""
        return Noise(self.perturb) if isinstance(self.perturb, str) else self.perturb

    def _described(self) -> str:
        """Text of what is measured, the same in every process and run: it names the noise and the lines of a state file."""
        numbers = (float(x).hex() for x in (self.magnitude, self.lower, self.upper))
        return f"({self.leaf!r}, {_lasting_name(self.perturbation)}, {', '.join(map(repr, numbers))})"


def _lasting_name(perturbation: Perturbation) -> str:
    name = repr(perturbation)
    if " at 0x" in name:  # an address, which the next run does not have
        name = f"{getattr(perturbation, '__module__', '')}.{getattr(perturbation, '__qualname__', '<unnamed>')}"
        if "<" in name:
            raise ValueError(
                f"the perturbation {perturbation!r} has no name that another run would know it by: "
                "make it a frozen dataclass, or a function of a module"
            )
    return name


@dataclass(frozen=True)
class SweepRow:
    """What one candidate changed.

    Attributes:
      candidate: the candidate.
      metrics: means over its draws.
      drop: of the sweep's metric against the baseline, a mean over draws.
      standard_error: of ``drop`` over draws; NaN for one draw.
      drops: of each draw.
    """

    candidate: Candidate
    metrics: Mapping[str, float]
    drop: float
    standard_error: float
    drops: tuple[float, ...]


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
      metric: what drops speak of; a leading minus means that lower is better.
      baseline: metrics of the unperturbed network.
      rows: in the order of the candidates.
      unused: leaves that the score does not depend on: their drops are exactly 0.
      n_scores: how many perturbed networks were scored, and ``n_resumed`` of them answered by the state file.
      seconds: wall time, of which ``compile_seconds`` went into compiling.
    """

    metric: str
    baseline: Mapping[str, float]
    rows: tuple[SweepRow, ...]
    unused: tuple[str, ...]
    n_scores: int
    n_resumed: int
    seconds: float
    compile_seconds: float


def sweep(
    score: Score,
    params: Any,
    batches: Sequence[Any],
    candidates: Sequence[Candidate],
    *,
    key: jax.Array,
    metric: str = "accuracy",
    context: Mapping[str, Any] | None = None,
    state_path: str | None = None,
    progress: Progress | None = None,
    **engine: Any,
) -> SweepResult:
    """Perturbation sweep: evaluates a network under every candidate.

    On several hosts, start the same program on each, ``jax.distributed.initialize()`` first; candidates are spread over
    all their devices, and every process returns the same result. The first process alone reads and writes the state
    file, on a disk of its own if need be, and tells the others what is answered. The numbers are those of one
    process, to the last bit for one ``group`` on devices of one kind, so that a sweep may be resumed on another number
    of processes. Where a process is lost the others raise ``RuntimeError`` at their next exchange; or JAX ends them, once
    ``heartbeat_timeout_seconds`` have passed without a sign of it.

    Args:
      score: see :data:`bqjax.core.task.Score`.
      params: parameters, any pytree, concrete.
      batches: data; each batch counts by its examples.
      candidates: at least one. The noise of a draw depends on ``key`` and the candidate alone, not on what else is swept.
      key: a ``jax.random`` key.
      metric: what drops speak of; a leading minus means that lower is better.
      context: by leaf name, what perturbations take besides weights and candidate, e.g. gradients.
      state_path: a file that keeps what was finished.
      progress: called in every process as candidates are finished, with the time left.
      **engine: ``mesh``, ``group`` and ``cache_bytes`` of :class:`bqjax.sensitivity.evaluator.Evaluator`.

    Raises:
      ValueError: no candidates; a leaf that does not exist or holds NaN; a baseline that is not finite; a state file of
        another sweep; processes that were given different arguments.
      RuntimeError: another process was lost. The state file holds what was finished.
    """
    start = time.monotonic()
    leaves = named_leaves(params)
    _check(candidates, leaves)
    evaluator = Evaluator(score, batches, **engine)
    fingerprint = {"params": digest(params), "batches": digest(list(batches)), "key": digest(key), "context": digest(context)}
    if evaluator.shared:
        check_same({**fingerprint, "candidates": _text_digest([(c._described(), c.draws) for c in candidates])})
    count = _Count(sum(c.draws for c in candidates), start, progress)
    results: dict[int, list[dict[str, float]]] = {i: [] for i in range(len(candidates))}
    unused: list[str] = []
    # A mesh of this process alone makes this process's own sweep, with a file of its own.
    with (SharedJournal if evaluator.shared else Journal)(state_path, fingerprint) as journal:
        baseline = journal.measure("baseline", lambda: evaluator.baseline(params))
        signed(baseline, metric)
        for (name, perturbation), members in _by_program(candidates, leaves):
            draws = [(i, draw) for i in members for draw in range(candidates[i].draws)]
            if not evaluator.depends_on(params, name):
                unused += [] if name in unused else [name]
                for i, _ in draws:
                    results[i].append(baseline)
                count.skip(len(draws))
                continue
            for first in range(0, len(draws), _CHUNK):
                chunk = [(candidates[i], draw) for i, draw in draws[first : first + _CHUNK]]
                points = [_point(candidate, draw, key, leaves[name].dtype) for candidate, draw in chunk]
                answered = journal.answered
                found = journal.measure(
                    _text_digest([(candidate._described(), draw) for candidate, draw in chunk]),
                    partial(evaluator.scores, params, [name], perturbation, points, context=context),
                )
                for (i, _), metrics in zip(draws[first:], found, strict=False):
                    results[i].append(metrics)
                count.add(len(chunk), journal.answered > answered, name)
    rows = tuple(_row(c, results[i], baseline, metric) for i, c in enumerate(candidates))
    seconds = time.monotonic() - start
    return SweepResult(metric, baseline, rows, tuple(unused), count.total, count.resumed, seconds, evaluator.compile_seconds)


def _check(candidates: Sequence[Candidate], leaves: Mapping[str, Any]) -> None:
    if not len(candidates):
        raise ValueError("no candidates to sweep over")
    for candidate in candidates:
        if candidate.leaf not in leaves:
            raise ValueError(f"no leaf is named {candidate.leaf!r}; the leaves are {', '.join(leaves)}")
    for name in dict.fromkeys(c.leaf for c in candidates):
        check_finite(name, leaves[name])


def _by_program(candidates: Sequence[Candidate], leaves: Mapping[str, Any]) -> list[tuple[tuple[str, Perturbation], list[int]]]:
    """Indices of the candidates by leaf and perturbation, leaves in the tree's order.

    One leaf after the other, and within it one perturbation after the other: these share an executable and a prefix.
    """
    groups: dict[tuple[str, Perturbation], list[int]] = {}
    for i, candidate in enumerate(candidates):
        groups.setdefault((candidate.leaf, candidate.perturbation), []).append(i)
    order = {name: i for i, name in enumerate(leaves)}
    return sorted(groups.items(), key=lambda group: order[group[0][0]])


def _text_digest(what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


@dataclass
class _Count:
    """How many draws are finished, told to ``progress`` with the time left."""

    total: int
    start: float
    progress: Progress | None
    done: int = 0
    resumed: int = 0

    def skip(self, n: int) -> None:
        self.done += n

    def add(self, n: int, resumed: bool, name: str) -> None:
        self.done += n
        self.resumed += n * resumed
        if self.progress:
            spent, fresh = time.monotonic() - self.start, self.done - self.resumed
            left = f"{spent / fresh * (self.total - self.done):.0f} s left" if fresh else ""
            self.progress(self.done, self.total, f"{name} {left}")


def _point(candidate: Candidate, draw: int, key: jax.Array, dtype: Any) -> NoiseCandidate:
    number = np.promote_types(dtype, np.float32).type
    own = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(candidate._described().encode())), draw)
    return NoiseCandidate(number(candidate.lower), number(candidate.upper), number(candidate.magnitude), own)


def _row(candidate: Candidate, results: Sequence[Mapping[str, float]], baseline: Mapping[str, float], metric: str) -> SweepRow:
    drops = np.array([float(signed(baseline, metric) - signed(m, metric)) for m in results])
    error = float(drops.std(ddof=1) / math.sqrt(len(drops))) if len(drops) > 1 else math.nan
    means = {name: float(np.mean([m[name] for m in results])) for name in baseline}
    return SweepRow(candidate, means, float(drops.mean()), error, tuple(drops.tolist()))
