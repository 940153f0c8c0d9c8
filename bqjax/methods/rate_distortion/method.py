"""Rate-distortion optimal quantization behind the interface of :mod:`bqjax.methods.base`: one lmbda within a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from bqjax._version import __version__
from bqjax.core.journal import Journal, digest
from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.scoring import Scored, paired_error, score_on
from bqjax.core.task import Task, signed
from bqjax.core.tree import named_leaves
from bqjax.methods.base import Compressed
from bqjax.methods.rate_distortion.distortion import measured_distortion, predicted_distortion
from bqjax.methods.rate_distortion.gauge import gauged_curvature, measured_ratios
from bqjax.methods.rate_distortion.search import file_bytes, gaussian_lambda, lambda_for_bytes
from bqjax.methods.rate_distortion.solver import SolverConfig, bin_and_quant_rd, mean_removal_cost, prepare, removal_distortion
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.lagrangian import lambda_within
from bqjax.sensitivity.task_statistics import once, task_curvature

__all__ = ["RateDistortion", "RateDistortionInfo"]


@dataclass(frozen=True)
class RateDistortionInfo:
    """Report of a search.

    Attributes:
      lmbda: of a bit.
      baseline, final: metrics on calibration data before and after.
      predicted: half the squared change of the outputs of an example, by leaf name.
      measured: the same of the whole network on calibration data.
      measured_leaves: the same of leaves changed alone, with the bias that takes up their mean; empty where it was not asked for.
      left: leaves that were solved by their importance alone, and why.
      ratios: by leaf name, what an error of the leaf was measured to cost over what is predicted, at one lmbda for all rows.
      notes: by leaf name, what is left out of its curvature: the width of blocks, where inputs are cut.
    """

    lmbda: float
    baseline: Mapping[str, float]
    final: Mapping[str, float]
    predicted: Mapping[str, float]
    measured: float
    measured_leaves: Mapping[str, float]
    left: Mapping[str, str]
    ratios: Mapping[str, float]
    notes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RateDistortion:
    """Error feedback under the outputs' curvature, at one Lagrangian weight of storage for all leaves.

    See :func:`bqjax.methods.rate_distortion.solver.bin_and_quant_rd`; the task must have ``outputs``.

    Attributes:
      lmbda: of a bit; None searches it.
      max_drop: of the metric on calibration data (a share: 0.01 is a point of accuracy).
      max_rank_drop: likewise of the ranking metric, which moves in finer steps; None sets no limit.
      target_bytes: the largest size of the file, in place of limits on drops.
      confidence: of the one-sided bound on the metric's drop that must keep ``max_drop``, ``drop + Phi^-1(confidence) se`` with
        the paired standard error on calibration data; at 0.5 the drop itself counts.
      coder: that the file will be saved with, for ``target_bytes``; see :func:`bqjax.codec.save`.
      rules: which leaves.
      solver: how leaves are solved.
      steps, scan: of the search for drops, see :func:`bqjax.sensitivity.lagrangian.lambda_within`.
      gauge: calibration examples on which each leaf's curvature is compared with what an error of the leaf alone costs, and scaled
        (:mod:`bqjax.methods.rate_distortion.gauge`): some percent fewer bytes at low rates; 0 takes it as it is.
      by_leaf: report what each leaf alone costs, too: a pass over the calibration data a leaf.
      positions, draws, examples, max_width: see :func:`bqjax.sensitivity.curvature.output_curvature`.
      label: in tables.

    Raises:
      ValueError: a setting out of range; ``lmbda`` or ``target_bytes`` beside another limit.
    """

    lmbda: float | None = None
    max_drop: float | None = None
    max_rank_drop: float | None = None
    target_bytes: int | None = None
    confidence: float = 0.5
    coder: str = "auto"
    rules: Sequence[Rule[Any]] | None = None
    solver: SolverConfig = field(default_factory=SolverConfig)
    steps: int = 7
    scan: int = 4
    gauge: int = 0
    by_leaf: bool = False
    positions: int = 2048
    draws: int = 1
    examples: int = 32
    max_width: int | None = None
    label: str = "rate-distortion"

    def __post_init__(self) -> None:
        drops = self.max_drop is not None or self.max_rank_drop is not None
        if (self.lmbda is not None) + drops + (self.target_bytes is not None) != 1:
            raise ValueError("name one of lmbda, target_bytes, and limits on drops (max_drop, max_rank_drop)")
        for what in ("lmbda", "max_drop", "max_rank_drop"):
            value = getattr(self, what)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{what} must be finite and not negative, got {value}")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must be at least 0.5 and below 1, got {self.confidence:g}")
        if self.confidence > 0.5 and self.max_drop is None:
            raise ValueError("a confidence is one of keeping a drop: name max_drop, or leave it at 0.5")
        if self.target_bytes is not None and self.target_bytes < 1:
            raise ValueError(f"target_bytes must be at least 1, got {self.target_bytes}")
        for what in ("steps", "positions", "draws", "examples", "max_width"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        for what in ("scan", "gauge"):
            if getattr(self, what) < 0:
                raise ValueError(f"{what} must not be negative, got {getattr(self, what)}")

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        curvature = task_curvature(
            task, key=key, positions=self.positions, draws=self.draws, examples=self.examples, max_width=self.max_width
        )
        fingerprint = {
            "params": digest(task.params),
            "batches": digest(list(task.calibration)),
            "key": digest(key),
            "config": repr((self.solver, self.rules, self.positions, self.draws, self.examples, self.max_width, self.gauge)),
            "version": __version__,
        }
        with Journal(state_path, fingerprint) as journal:
            ratios = self._ratios(task, curvature, key)
            trials = _Trials(self, task, gauged_curvature(curvature, ratios), journal)
            lmbda = self._lmbda(trials, progress)
            baseline, final = trials.metrics(None)[0], trials.metrics(lmbda)[0]
            tree = trials.tree(lmbda)
            predicted = predicted_distortion(task.params, tree, curvature)
            measured, leaves = trials.distortion(lmbda, tree, list(predicted) if self.by_leaf else ())
        info = RateDistortionInfo(
            lmbda, baseline, final, predicted, measured, leaves, dict(curvature.left), ratios, dict(curvature.notes)
        )
        return Compressed(tree, info, trials.found(lmbda))

    def _ratios(self, task: Task, curvature: Curvature, key: jax.Array) -> dict[str, float]:
        """What leaves cost over what is predicted, once for all rows of a task."""
        outputs = task.outputs
        if not self.gauge or outputs is None:
            return {}
        about = self.positions, self.draws, self.examples, self.max_width, self.gauge, repr((self.solver, self.rules))

        def measure() -> dict[str, float]:
            return measured_ratios(
                jax.jit(outputs) if task.traceable else outputs,
                task.params,
                task.calibration,
                curvature,
                examples=self.gauge,
                rules=self.rules,
                config=self.solver,
            )

        return dict(once(task, ("ratios", digest(key), *about), measure))

    def _lmbda(self, trials: _Trials, progress: Progress | None) -> float:
        if self.lmbda is not None:
            return self.lmbda
        unit = mean_removal_cost(trials.prepared)
        if self.target_bytes is not None:
            start = gaussian_lambda(*removal_distortion(trials.prepared), self.target_bytes)
            return lambda_for_bytes(trials.bytes, self.target_bytes, unit, trials.n_weights, start=start, progress=progress)
        return lambda_within(trials.excess, unit, steps=self.steps, scan=self.scan, progress=progress)


class _Trials:
    """What a lmbda gives: its tree, the file's bytes and the metrics on calibration data, the latter two measured once."""

    def __init__(self, method: RateDistortion, task: Task, curvature: Curvature, journal: Journal):
        self._method, self._task, self._curvature, self._journal = method, task, curvature, journal
        self.prepared = prepare(task.params, curvature, method.rules, method.solver)
        self.n_weights = sum(int(np.size(leaf)) for leaf in named_leaves(task.params).values())
        self._before: Scored | None = None

    def tree(self, lmbda: float) -> Any:
        method = self._method
        return bin_and_quant_rd(
            self._task.params, self._curvature, lmbda=lmbda, rules=method.rules, config=method.solver, prepared=self.prepared
        )

    def found(self, lmbda: float) -> dict[str, str]:
        """What a file's metadata say."""
        return {"lmbda": f"{lmbda:.4g}"}

    def bytes(self, lmbda: float) -> int:
        """Of the file, with the metadata that it will hold."""
        about = {"task": self._task.name, "method": self._method.label, **self.found(lmbda)}

        def measure() -> int:
            return file_bytes(self.tree(lmbda), self._method.coder, about, self._task.storage)

        return int(self._journal.measure(f"bytes {lmbda.hex()} {(self._method.coder, about)!r}", measure))

    def metrics(self, lmbda: float | None) -> tuple[dict[str, float], float]:
        """On calibration data (of the uncompressed network for None), and the standard error of the metric's difference."""

        def measure() -> list[Any]:
            if lmbda is None:
                return [self._scored_before().metrics, 0.0]
            after = score_on(self._task, decode(self.tree(lmbda)), self._task.calibration)
            return [after.metrics, paired_error(self._scored_before().parts, after.parts, after.n_examples)]

        metrics, error = self._journal.measure("baseline" if lmbda is None else f"metrics {lmbda.hex()}", measure)
        if error is None and self._method.confidence > 0.5:
            raise ValueError(
                f"task {self._task.name!r} has no predictions that tell each example's {self._task.metric.removeprefix('-')}, "
                "which a confidence is taken from: leave it at 0.5"
            )
        return dict(metrics), error or 0.0

    def _scored_before(self) -> Scored:
        if self._before is None:
            self._before = score_on(self._task, self._task.params, self._task.calibration)
        return self._before

    def distortion(self, lmbda: float, tree: Any, names: Sequence[str]) -> tuple[float, dict[str, float]]:
        """Measured on calibration data: of the whole, and of leaves by name."""
        task, shifts = self._task, self.prepared.shifts
        if task.outputs is None:
            raise ValueError(f"task {task.name!r} has no outputs")  # whoever has a curvature has some
        outputs = jax.jit(task.outputs) if task.traceable else task.outputs
        biases = {shift.bias for shift in shifts.values()}

        def of(chosen: Sequence[str] | None) -> Any:
            key = f"distortion {lmbda.hex()} {'' if chosen is None else ' '.join(chosen)}"
            return self._journal.measure(
                key, lambda: measured_distortion(outputs, task.params, tree, task.calibration, names=chosen)
            )

        together = {n: [n, shifts[n].bias] if n in shifts else [n] for n in names if n not in biases}
        return float(of(None)), {name: float(of(chosen)) for name, chosen in together.items()}

    def excess(self, lmbda: float) -> float:
        """How far the worst drop is above its limit."""
        (before, _), (after, error) = self.metrics(None), self.metrics(lmbda)
        method, task = self._method, self._task
        margin = NormalDist().inv_cdf(method.confidence) * error
        found = []
        if method.max_drop is not None:
            found.append(float(signed(before, task.metric) - signed(after, task.metric)) + margin - method.max_drop)
        if method.max_rank_drop is not None:
            found.append(float(signed(before, task.rank_by) - signed(after, task.rank_by)) - method.max_rank_drop)
        return max(found)
