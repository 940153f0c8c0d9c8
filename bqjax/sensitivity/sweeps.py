"""Perturbation sweeps over many leaves: the tables behind the paper's figures 2, 3 and 5.

A sweep is a list of :class:`~bqjax.sensitivity.sweep_rows.Candidate`; :func:`sweep` scores them leaf by leaf on the engine of
:mod:`bqjax.sensitivity.evaluator`, all of them or, in a race, as far as the question needs. What was finished is kept in a state
file, so that a sweep of hours survives an interruption.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-A and III-C.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np

from bqjax.core.journal import Journal, digest
from bqjax.core.progress import Progress
from bqjax.core.task import Predictions, Score
from bqjax.core.tree import named_leaves
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.fixed_budget import FixedBudget
from bqjax.sensitivity.predictions import out_of_reach, predicted_effects
from bqjax.sensitivity.processes import SharedJournal, check_same
from bqjax.sensitivity.racing import Race, parse_until
from bqjax.sensitivity.rounds import Rounds
from bqjax.sensitivity.spread import smaller
from bqjax.sensitivity.sweep_rows import Candidate, RaceRecord, Statement, SweepResult, SweepRow
from bqjax.sensitivity.sweep_run import ROUND_DRAWS, Count, SweepRun, check_candidates, text_digest

__all__ = ["Candidate", "RaceRecord", "Statement", "SweepResult", "SweepRow", "sweep"]

_BLOCK = 50  # examples of a race's round; fewer where there are few
_BUDGET_BLOCK = 25  # where a fixed budget has few rounds: as many evaluations see more noise
_LEAST_BLOCKS = 16
_LEAST_ROUNDS = 16


def sweep(
    score: Score,
    params: Any,
    batches: Sequence[Any],
    candidates: Sequence[Candidate],
    *,
    key: jax.Array,
    metric: str = "accuracy",
    predict: Callable[[Any, Any], Predictions] | None = None,
    context: Mapping[str, Any] | None = None,
    until: str | float | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    budget: float | None = None,
    first: Literal["predict"] | None = None,
    curvature: Curvature | None = None,
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

    With ``until`` the sweep is a race (:mod:`bqjax.sensitivity.racing`): batches are cut to blocks, a round takes noise and its
    mirror image (or two draws, of a perturbation that has none) on one block, and candidates whose place is settled are scored no
    more. It ends when the order of the candidates (``"rank"``), the ten that drop most (``"top10"``) or a standard error
    (``0.002``) is settled, and at the latest when it has scored what the full sweep would have; ``race`` of the result says what
    was reached. Candidates are ranked within their figure and series.

    With a ``budget`` the cost is fixed instead, and the question is the top as well as that can tell
    (:mod:`bqjax.sensitivity.fixed_budget`); ``race.sure`` says how sure it is of each row.

    Args:
      score: see :data:`bqjax.core.task.Score`.
      params: parameters, any pytree, concrete.
      batches: data; each batch counts by its examples.
      candidates: at least one. The noise of a draw depends on ``key``, leaf, perturbation and bounds alone: not on what else is
        swept, and it is the same at every magnitude (common random numbers), so that magnitudes are compared draw by draw.
      key: a ``jax.random`` key.
      metric: what drops speak of; a leading minus means that lower is better.
      predict: what the network says of each example (:class:`~bqjax.core.task.Task` has one), from which rows get standard
        errors over examples, too; computed along with the score.
      context: by leaf name, what perturbations take besides weights and candidate, e.g. gradients.
      until: what a race is run for; None scores every draw of every candidate.
      confidence: of a race's statements, over all of them together.
      tolerance: drops that differ by less count as equal in a race, in units of the metric.
      budget: the part of the full sweep's evaluations that a race for a top (``until="top10"``) spends; None lets it run until the
        top is settled.
      first: ``"predict"`` leaves out of a race for a top the candidates whose effect, as the curvature predicts it, is out of reach
        (:func:`~bqjax.sensitivity.predictions.out_of_reach`); their rows have no drop.
      curvature: of the network's outputs, :func:`~bqjax.sensitivity.curvature.output_curvature`; rows then have ``predicted``.
      state_path: a file that keeps what was finished.
      progress: called in every process as candidates are finished, with the time left.
      **engine: ``mesh``, ``group`` and ``cache_bytes`` of :class:`bqjax.sensitivity.evaluator.Evaluator`.

    Raises:
      ValueError: no candidates; a leaf that does not exist or holds NaN; a baseline that is not finite; a state file of
        another sweep; processes that were given different arguments; a race that has no question, or too few draws and examples.
      RuntimeError: another process was lost. The state file holds what was finished.
    """
    start = time.monotonic()
    leaves = named_leaves(params)
    check_candidates(candidates, leaves)
    predicted = None if curvature is None else predicted_effects(curvature, params, candidates, key=key, context=context)
    race = None
    fingerprint = {"params": digest(params), "batches": digest(list(batches)), "key": digest(key), "context": digest(context)}
    if until is not None:
        batches = _blocks(batches, _BLOCK if budget is None else _BUDGET_BLOCK)
        race = _race(candidates, parse_until(until), confidence, tolerance, budget, len(batches), first, predicted)
    elif budget is not None:
        raise ValueError(f"budget={budget!r} goes with a race for a top: pass until='top10', or another number")
    elif first is not None:
        raise ValueError(f"first={first!r} goes with a race for a top: pass until='top10', or another number")
    told = predict if race is None else None  # a race takes its errors from rounds
    evaluator = Evaluator(score, batches, predict=told, metric=metric, **engine)
    if evaluator.shared:
        asked = [(c.described(), c.draws) for c in candidates], until, confidence, tolerance, budget, metric if predict else None
        check_same({**fingerprint, "candidates": text_digest(asked)})
    # A mesh of this process alone makes this process's own sweep, with a file of its own.
    with (SharedJournal if evaluator.shared else Journal)(state_path, fingerprint) as journal:
        total = sum(c.draws for c in candidates)
        run = SweepRun(
            evaluator, params, candidates, key, metric, context, journal, Count(total, start, progress), told is not None
        )
        rows = run.all_draws() if race is None else run.raced(race)
    if predicted is not None:
        rows = [replace(row, predicted=float(value)) for row, value in zip(rows, predicted, strict=True)]
    record = None if race is None else race.record(run.evaluations, total)
    seconds, count = time.monotonic() - start, run.count
    return SweepResult(
        metric,
        run.baseline,
        tuple(rows),
        tuple(run.unused),
        count.scored,
        count.resumed,
        seconds,
        evaluator.compile_seconds,
        record,
    )


def _blocks(batches: Sequence[Any], most: int) -> list[Any]:
    """Batches cut to the blocks of a race's rounds, of at most so many examples, as far as their arrays have the examples first."""
    lengths = [{np.shape(x)[:1] for x in jax.tree.leaves(batch)} for batch in batches]
    sizes = [one.pop()[0] if len(one) == 1 and () not in one else 1 for one in lengths]
    return smaller(batches, sizes, max(1, min(most, sum(sizes) // _LEAST_BLOCKS)))[0]


def _race(
    candidates: Sequence[Candidate],
    until: str | float,
    confidence: float,
    tolerance: float,
    budget: float | None,
    blocks: int,
    first: str | None,
    predicted: np.ndarray | None,
) -> Rounds:
    """A race over candidates, of as many rounds as the full sweep would pay for, or of a part of them."""
    draws = max(c.draws for c in candidates)
    most = blocks * draws // ROUND_DRAWS
    if most < _LEAST_ROUNDS:
        raise ValueError(
            f"a race over {blocks} blocks of examples and {draws} draws has {most} rounds of {ROUND_DRAWS} draws, and needs "
            f"{_LEAST_ROUNDS}: give the candidates more draws, or the sweep more examples or smaller batches"
        )
    top = int(until[3:]) if isinstance(until, str) and until.startswith("top") else None
    out: frozenset[int] = frozenset()
    if first is not None:
        if first != "predict":
            raise ValueError(f"first must be 'predict' or None, got {first!r}")
        if predicted is None:
            raise ValueError("first='predict' needs curvature=: take output_curvature of the network's outputs")
        if top is None:
            raise ValueError(f"first='predict' goes with a race for a top, as until='top10', not {until!r}")
        out = out_of_reach(predicted, candidates, top)
    if budget is None:
        return Race(candidates, until, confidence, most, tolerance, out=out)
    if top is None:
        raise ValueError(f"a budget goes with a race for a top, as until='top10', not {until!r}")
    if tolerance:
        raise ValueError(f"a tolerance goes with a race that runs until something is settled, not with a budget; got {tolerance:g}")
    return FixedBudget(candidates, top, budget, most, confidence, out=out)
