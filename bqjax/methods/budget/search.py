"""Verified allocation under a budget: a plan on the curves is compressed, decoded and scored before it is believed.

Distortions add up over layers only nearly. What was asked for (bytes of the file, or a drop on the calibration data) is therefore
measured on the network as a whole, and the proposal is moved along the curves, step by step of their hulls, until it holds.
Values of ``lmbda`` next to those of the plan are then measured, and everything is done again on the finer curves.

A drop on a few hundred examples is an estimate, and the smallest plan that keeps a limit tends to be one whose examples were
lucky. With a confidence ``c`` a plan must keep the limit at the one-sided bound ``drop + Phi^-1(c) se``, with ``se`` the standard
error of the paired difference on the calibration data.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import jax
import numpy as np

from bqjax import codec
from bqjax._version import __version__
from bqjax.core.journal import Journal, digest
from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.scoring import Scored, paired_error, score_on
from bqjax.core.task import Task, signed
from bqjax.methods.budget.allocation import Option, Plan, plan_for_size, plans, total
from bqjax.methods.budget.curves import LayerCurves, Measured
from bqjax.methods.budget.plan import BudgetConfig, Planned

__all__ = ["BudgetPlan", "PlannedUnit", "find_plan"]

_TRIES = 12  # of a size, before the plan that fits is taken as it is
_FILL = 0.002  # a file within this share of its target is not filled any further


@dataclass(frozen=True)
class PlannedUnit:
    """What the plan does to one unit: its leaves, weights, and the option that it takes."""

    names: tuple[str, ...]
    size: int
    option: Measured


@dataclass(frozen=True)
class BudgetPlan:
    """A verified plan.

    Attributes:
      method: stores the network so.
      units: largest first.
      kind: of distortion, that the plan was made by.
      predicted: bytes of the leaves, and the sum of their distortions.
      file_bytes: of the file, as written with the coder that was asked for.
      drop, rank_drop: of the metric and of the ranking metric on the calibration data, of what the file decodes to.
      drop_error: standard error of ``drop``, of paired differences; None where the task's predictions do not tell.
      n_options: how many options the curves have.
      n_measured, n_verified: options and plans that were measured in this process; others were answered by the state file.
    """

    method: Planned
    units: tuple[PlannedUnit, ...]
    kind: str
    predicted: Option
    file_bytes: int
    drop: float
    rank_drop: float
    drop_error: float | None
    n_options: int
    n_measured: int
    n_verified: int


@dataclass(frozen=True)
class _Verdict:
    file_bytes: int
    drop: float
    rank_drop: float
    error: float | None


class _Found(NamedTuple):
    """A plan that keeps the limit, the kind of distortion that it was made by, and its verdict."""

    plan: Plan
    kind: str
    verdict: _Verdict


class _Limit(NamedTuple):
    """What was asked for: a size, or a drop with its confidence."""

    target_bytes: int | None
    max_drop: float | None
    confidence: float

    def order(self, verdict: _Verdict) -> tuple[float, float]:
        """Which of two plans within the limit is better: the less, the better."""
        size, lost = verdict.file_bytes, verdict.rank_drop
        return (lost, size) if self.target_bytes is not None else (size, lost)


class _Search:
    """Plans by their verdicts, measured once each."""

    def __init__(self, task: Task, curves: LayerCurves, label: str, coder: str, journal: Journal, progress: Progress | None):
        self._task, self.curves, self._coder, self._journal, self._progress = task, curves, coder, journal, progress
        self._metadata = {"task": task.name, "method": label}  # what the file will hold; it counts
        self._uncompressed: Scored | None = None
        self.verified = 0

    @property
    def before(self) -> Scored:
        """The uncompressed network on the calibration data; scored where it is asked for first."""
        if self._uncompressed is None:
            self._uncompressed = score_on(self._task, self._task.params, self._task.calibration)
        return self._uncompressed

    def verdict(self, plan: Plan) -> _Verdict:
        """Writes the plan's file, reads it back, decodes and scores what was read."""

        def measure() -> list[float | None]:
            with tempfile.TemporaryDirectory(prefix="bqjax-") as folder:
                tree, path = self.curves.tree(plan), Path(folder) / "plan"
                size = codec.save(path, tree, coder=self._coder, metadata=self._metadata).file_bytes
                after = score_on(self._task, decode(codec.load(path, like=tree)), self._task.calibration)
            self.verified += 1
            before, by = self.before, (self._task.metric, self._task.rank_by)
            drops = [float(signed(before.metrics, name) - signed(after.metrics, name)) for name in by]
            return [size, *drops, paired_error(before.parts, after.parts, after.n_examples)]

        text = repr((self.curves.layers(plan), self._coder, self._metadata, "with errors"))
        found = self._journal.measure(f"plan {hashlib.sha256(text.encode()).hexdigest()[:32]}", measure)
        verdict = _Verdict(int(found[0]), *found[1:])
        if self._progress:
            name = self._task.metric.removeprefix("-")
            error = "" if verdict.error is None else f" ± {verdict.error:.4f}"
            self._progress(self.verified, self.verified, f"{verdict.file_bytes:,} bytes, drop of {name} {verdict.drop:+.4f}{error}")
        return verdict

    def within(self, limit: _Limit, kind: str) -> _Found:
        """The best plan found within the limit, by one kind of distortion."""
        if limit.target_bytes is not None:
            plan, verdict = self.for_size(kind, limit.target_bytes)
        else:
            plan, verdict = self.for_drop(kind, float(limit.max_drop or 0.0), limit.confidence)
        return _Found(plan, kind, verdict)

    def for_drop(self, kind: str, limit: float, confidence: float) -> tuple[Plan, _Verdict]:
        """The smallest plan on the hulls that keeps the limit with some confidence, by bisection, and its verdict."""
        path = plans(self.curves.curves(kind))
        errors = NormalDist().inv_cdf(confidence)  # above the drop

        def bound(plan: Plan) -> float:
            verdict = self.verdict(plan)
            return verdict.drop + (errors * (verdict.error or 0.0))

        def keeps(plan: Plan) -> bool:
            return bound(plan) <= limit + 1e-9

        if keeps(path[0]):
            return path[0], self.verdict(path[0])
        if not keeps(path[-1]):
            surely = "" if confidence == 0.5 else f" at a confidence of {confidence:g}"
            raise ValueError(
                f"no plan keeps the drop of {self._task.metric.removeprefix('-')} within {limit:g}{surely}: the least that was "
                f"reached on {self._task.calibration_name} is {bound(path[-1]):.4f}; allow more"
            )
        low, high = 0, len(path) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if keeps(path[middle]) else (middle, high)
        return path[high], self.verdict(path[high])

    def for_size(self, kind: str, target: int) -> tuple[Plan, _Verdict]:
        """The plan of least distortion whose file fits, and its verdict."""
        curves = self.curves.curves(kind)
        smallest = plans(curves)[0]
        found = self.verdict(smallest)
        if found.file_bytes > target:
            raise ValueError(
                f"no plan fits into {target:,} bytes: the smallest file that these options reach has {found.file_bytes:,}"
            )
        best = smallest, found
        # What a file takes besides its leaves is nearly the same for all plans: the next try corrects the last one.
        budget = target - (found.file_bytes - total(curves, smallest).bytes)
        for _ in range(_TRIES):
            if budget < total(curves, smallest).bytes:
                break
            plan = plan_for_size(curves, budget)
            found = self.verdict(plan)
            gap = target - found.file_bytes
            if gap >= 0 and total(curves, plan).distortion <= total(curves, best[0]).distortion:
                best = plan, found
            if 0 <= gap <= _FILL * target:
                break
            if gap > 0 and total(curves, plan_for_size(curves, budget + gap)) == total(curves, plan):
                break  # nothing that is left fits
            budget += gap if gap < 0 else gap / 2
        return best


def find_plan(
    task: Task,
    config: BudgetConfig | None = None,
    *,
    key: jax.Array,
    target_bytes: int | None = None,
    max_drop: float | None = None,
    confidence: float = 0.5,
    label: str = "planned",
    coder: str = "auto",
    state_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> BudgetPlan:
    """Rate-distortion allocation over a network's layers, for a file of some size or a drop of some size.

    Args:
      task: the network; only its calibration data is used.
      config: what the layers are offered; None is ``BudgetConfig()``.
      key: a ``jax.random`` key; the same key gives the same plan.
      target_bytes: the file has at most so many bytes, and the least distortion.
      max_drop: or the metric drops by at most so much on the calibration data, as a fraction, and the file is the smallest.
      confidence: with ``max_drop``, of a one-sided bound that must keep it, at least 0.5 and below 1; at 0.5 the measured drop
        itself counts.
      label: of the method that stores the network so; the file holds it.
      coder: see :func:`bqjax.codec.save`.
      state_path: a file that keeps every measurement, for any target of the same task, key and config.
      progress: called as measurements are made.

    Raises:
      ValueError: neither or both of ``target_bytes`` and ``max_drop``, or one that is negative; a target below what any plan
        reaches, or a drop that no plan keeps (the message says what is reached); a network with nothing to compress; a confidence
        out of range, without ``max_drop``, or for a task whose predictions do not tell each example's part of the metric.
    """
    _check_budget(task, target_bytes, max_drop, confidence)
    config = config or BudgetConfig()
    with Journal(state_path, _fingerprint(task, config, key)) as journal:
        curves = LayerCurves(task, config, key=key, journal=journal, coder=coder, progress=progress)
        search = _Search(task, curves, label, coder, journal, progress)
        limit = _Limit(target_bytes, max_drop, confidence)
        best: _Found | None = None
        for number, kind in enumerate(curves.kinds):
            # The curves are made finer where the first kind plans; the other kind plans once, on what is there then.
            for rounds_left in range(config.refine if number == 0 else 0, -1, -1):
                found = search.within(limit, kind)
                if best is None or limit.order(found.verdict) < limit.order(best.verdict):
                    best = found
                if not rounds_left or not curves.refine(found.plan, kind):
                    break
        if best is None:  # there is at least one kind of distortion; here for the type checker
            raise RuntimeError("nothing was planned")
        return _report(search, config, label, best)


def _check_budget(task: Task, target_bytes: int | None, max_drop: float | None, confidence: float) -> None:
    if (target_bytes is None) == (max_drop is None):
        raise ValueError("name either a target size or the largest drop")
    if target_bytes is not None and target_bytes < 1:
        raise ValueError(f"the target size must be at least 1 byte, got {target_bytes}")
    if max_drop is not None and not (np.isfinite(max_drop) and max_drop >= 0):
        raise ValueError(f"the largest drop must be finite and not negative, got {max_drop}: the uncompressed network has none")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"the confidence must be at least 0.5 and below 1, got {confidence:g}")
    if confidence > 0.5 and max_drop is None:
        raise ValueError("a confidence is one of keeping a drop: name max_drop, or leave it at 0.5")
    if confidence > 0.5 and score_on(task, task.params, task.calibration[:1]).parts is None:
        raise ValueError(
            f"task {task.name!r} has no predictions that tell each example's {task.metric.removeprefix('-')}, which a "
            "confidence is taken from: leave it at 0.5"
        )


def _fingerprint(task: Task, config: BudgetConfig, key: jax.Array) -> dict[str, str]:
    """What measurements depend on."""
    return {
        "params": digest(task.params),
        "batches": digest(list(task.calibration)),
        "key": digest(key),
        "importance": repr((config.draws, config.floor, config.iterations)),
        "metrics": repr((task.metric, task.rank_by, task.outputs is not None)),
        "version": __version__,
    }


def _report(search: _Search, config: BudgetConfig, label: str, found: _Found) -> BudgetPlan:
    curves, (plan, kind, verdict) = search.curves, found
    units = [
        PlannedUnit(
            curves.units[unit],
            sum(int(np.size(curves.weights[name])) for name in curves.units[unit]),
            curves.options[unit][i],
        )
        for unit, i in plan.items()
    ]
    return BudgetPlan(
        method=Planned(
            layers=curves.layers(plan), draws=config.draws, floor=config.floor, iterations=config.iterations, label=label
        ),
        units=tuple(sorted(units, key=lambda u: -u.size)),
        kind=kind,
        predicted=total(curves.curves(kind), plan),
        file_bytes=verdict.file_bytes,
        drop=verdict.drop,
        rank_drop=verdict.rank_drop,
        drop_error=verdict.error,
        n_options=sum(map(len, curves.options.values())),
        n_measured=curves.measured,
        n_verified=search.verified,
    )
