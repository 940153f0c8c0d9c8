"""Interactions: what perturbing two parts of a network at once costs beyond what each costs alone.

Every budget adds up the damage of single layers. Here the sum is compared with what pairs, and all parts together, really cost:
under the same noise and on the same examples, so that the error of the comparison is far smaller than that of the drops.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core.journal import Journal, digest
from bqjax.core.progress import Progress
from bqjax.core.task import Predictions, Score, signed
from bqjax.core.tree import named_leaves
from bqjax.sensitivity.evaluator import Evaluator, Measured
from bqjax.sensitivity.pair_scores import PairScores
from bqjax.sensitivity.paired import Errors, errors_of, holm, p_values
from bqjax.sensitivity.processes import SharedJournal, check_same
from bqjax.sensitivity.sweep_rows import Candidate, SweepRow
from bqjax.sensitivity.sweep_run import Count, SweepRun, check_candidates, text_digest

__all__ = ["Interactions", "PairRow", "interactions"]


class PairRow(NamedTuple):
    """Two candidates at once.

    Attributes:
      first, second: places of the candidates.
      drop: of the metric when both are perturbed.
      interaction: ``drop`` less the drops of both alone: positive where the two are worse than their sum.
      error: standard error of ``interaction`` over examples and draws, all paired.
      p: two-sided p-value against 0, adjusted for all pairs (Holm).
    """

    first: int
    second: int
    drop: float
    interaction: float
    error: float
    p: float


@dataclass(frozen=True)
class Interactions:
    """Singles, pairs and all together.

    Attributes:
      metric: what drops speak of; a leading minus means that lower is better.
      baseline: metrics of the unperturbed network.
      singles: a row a candidate.
      pairs: of candidates.
      together: drop with all candidates perturbed at once, and its standard error.
      excess: ``together`` less the sum of the singles, and its standard error, paired.
      n_scores, n_resumed, seconds, compile_seconds: see :class:`~bqjax.sensitivity.sweep_rows.SweepResult`.
    """

    metric: str
    baseline: dict[str, float]
    singles: tuple[SweepRow, ...]
    pairs: tuple[PairRow, ...]
    together: tuple[float, float]
    excess: tuple[float, float]
    n_scores: int
    n_resumed: int
    seconds: float
    compile_seconds: float

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """Interactions and their errors, ``[n, n]`` symmetric, NaN where there was no pair."""
        n = len(self.singles)
        values, errors = np.full((n, n), np.nan), np.full((n, n), np.nan)
        for row in self.pairs:
            for i, j in ((row.first, row.second), (row.second, row.first)):
                values[i, j], errors[i, j] = row.interaction, row.error
        return values, errors

    @property
    def sum_of_singles(self) -> float:
        """What a budget that adds up would expect of all together."""
        return float(sum(row.drop for row in self.singles))

    @property
    def sum_with_pairs(self) -> float:
        """What a budget that knows the pairs would expect of all together."""
        return self.sum_of_singles + float(sum(row.interaction for row in self.pairs))


def interactions(
    score: Score,
    params: Any,
    batches: Sequence[Any],
    candidates: Sequence[Candidate],
    *,
    key: jax.Array,
    metric: str = "-loss",
    predict: Callable[[Any, Any], Predictions] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    state_path: str | None = None,
    progress: Progress | None = None,
    **engine: Any,
) -> Interactions:
    """Pairwise interaction of perturbations: the drop of two at once less the drops of each alone.

    Args:
      score, params, batches, key, metric, predict, state_path, progress: see :func:`~bqjax.sensitivity.sweeps.sweep`. Without
        ``predict`` errors are over draws alone.
      candidates: layers or bins, of one perturbation and one number of draws. Draw ``j`` of a pair is draw ``j`` of both.
      pairs: places of candidates; None takes all pairs.
      **engine: see :func:`~bqjax.sensitivity.sweeps.sweep`.

    Raises:
      ValueError: fewer than two candidates; several perturbations or numbers of draws; a pair of a candidate with itself, or of two
        whose bins in one leaf overlap; see also ``sweep``.
    """
    start = time.monotonic()
    leaves = named_leaves(params)
    asked = _checked(candidates, leaves, pairs)
    evaluator = Evaluator(score, batches, predict=predict, metric=metric, **engine)
    fingerprint = {"params": digest(params), "batches": digest(list(batches)), "key": digest(key), "context": digest(None)}
    if evaluator.shared:
        check_same({**fingerprint, "candidates": text_digest([(c.described(), c.draws) for c in candidates])})
    draws = candidates[0].draws
    with (SharedJournal if evaluator.shared else Journal)(state_path, fingerprint) as journal:
        every = tuple(range(len(candidates)))
        count = Count((len(candidates) + len(asked) + (every not in asked)) * draws, start, progress)
        run = SweepRun(evaluator, params, candidates, key, metric, None, journal, count, predict is not None)
        singles = run.all_draws()
        found: dict[tuple[int, ...], Any] = {}
        scores = PairScores(run)
        for chunk, measure in scores.units(asked):
            found |= zip(chunk, _journaled(run, chunk, measure), strict=True)
        if every not in found:
            found[every] = _journaled(run, [every], partial(scores.together, every))[0]
    return _made(run, singles, asked, found, time.monotonic() - start)


def _checked(candidates: Sequence[Candidate], leaves: Any, pairs: Sequence[tuple[int, int]] | None) -> list[tuple[int, ...]]:
    check_candidates(candidates, leaves)
    if len(candidates) < 2:
        raise ValueError("interactions are between two candidates at least, got one")
    if len({c.perturbation for c in candidates}) > 1 or len({c.draws for c in candidates}) > 1:
        raise ValueError("interactions take candidates of one perturbation and one number of draws")
    asked = list(itertools.combinations(range(len(candidates)), 2)) if pairs is None else [(int(i), int(j)) for i, j in pairs]
    for i, j in asked:
        if not (0 <= i < len(candidates) and 0 <= j < len(candidates)):
            raise ValueError(f"the pair {(i, j)} names a candidate that is not there: there are {len(candidates)}, from 0")
        a, b = candidates[i], candidates[j]
        if i == j or (a.leaf == b.leaf and a.lower < b.upper and b.lower < a.upper):
            raise ValueError(
                f"the pair {(i, j)} perturbs the same weights of leaf {a.leaf!r} twice: pair different leaves, or bins that do not "
                "overlap"
            )
    alike = [(i, j) for i, j in itertools.combinations(range(len(candidates)), 2) if candidates[i].leaf == candidates[j].leaf]
    for i, j in alike:
        a, b = candidates[i], candidates[j]
        if a.lower < b.upper and b.lower < a.upper:
            raise ValueError(f"candidates {i} and {j} perturb the same weights of leaf {a.leaf!r}: give interactions one of them")
    return list(asked)


def _journaled(
    run: SweepRun, chunk: Sequence[tuple[int, ...]], measure: Callable[[], Measured]
) -> list[tuple[list[dict[str, float]], Any]]:
    """Metrics of each draw of some pairs, and each example's parts ``[draws, n]``."""
    candidates, draws = run.candidates, run.candidates[0].draws
    asked = [[candidates[i].described() for i in member] for member in chunk]

    answered = run.journal.answered
    metrics, parts = run.journaled(["jointly", run.metric if run.told else None, draws, *asked], measure)
    run.count.add(len(chunk) * draws, run.journal.answered > answered, candidates[chunk[0][0]].leaf)
    cuts = [slice(i * draws, (i + 1) * draws) for i in range(len(chunk))]
    return [(metrics[cut], None if parts is None else parts[cut]) for cut in cuts]


def _made(
    run: SweepRun, singles: list[SweepRow], pairs: Sequence[tuple[int, ...]], found: dict[tuple[int, ...], Any], seconds: float
) -> Interactions:
    def drops(member: tuple[int, ...]) -> np.ndarray:
        """``[draws, n]``, or ``[draws, 1]`` where examples are not told apart."""
        metrics, parts = found[member]
        if parts is not None:
            return np.asarray(run.differences(list(parts)))
        return np.array([[signed(run.baseline, run.metric) - signed(m, run.metric)] for m in metrics])

    def alone(i: int) -> np.ndarray:
        own = singles[i].differences
        return np.array(singles[i].drops)[:, None] if own is None else own.astype(np.float64)

    def excess(member: tuple[int, ...]) -> tuple[Errors, Errors]:
        whole = np.asarray(drops(member), np.float64)
        return errors_of(whole), errors_of(whole - sum(alone(i) for i in member))

    with np.errstate(invalid="ignore", over="ignore"):
        errors = [excess(member) for member in pairs]
        together, beyond = excess(tuple(range(len(singles))))
    p = holm(p_values(*zip(*[(e.mean, e.both, e.freedom) for _, e in errors], strict=True))) if errors else np.array([])
    rows = [PairRow(i, j, whole.mean, e.mean, e.both, float(q)) for (i, j), (whole, e), q in zip(pairs, errors, p, strict=True)]
    count = run.count
    return Interactions(
        run.metric,
        run.baseline,
        tuple(singles),
        tuple(rows),
        (together.mean, together.both),
        (beyond.mean, beyond.both),
        count.scored,
        count.resumed,
        seconds,
        run.evaluator.compile_seconds,
    )
