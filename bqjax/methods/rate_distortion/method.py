"""Rate-distortion optimal quantization behind the interface of :mod:`bqjax.methods.base`: one lmbda within a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from bqjax.core.journal import Journal, digest
from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.scoring import score_on
from bqjax.core.task import Task, signed
from bqjax.methods.base import Compressed
from bqjax.methods.rate_distortion.search import file_bytes, lambda_for_bytes, search_lambda
from bqjax.methods.rate_distortion.solver import SolverConfig, bin_and_quant_rd, predicted_distortion, prepare, removal_distortion
from bqjax.sensitivity.curvature import output_curvature

__all__ = ["RateDistortion", "RateDistortionInfo"]


@dataclass(frozen=True)
class RateDistortionInfo:
    """Report of a search.

    Attributes:
      lmbda: of a bit.
      baseline, final: metrics on calibration data before and after.
      predicted: half the squared change of the outputs of an example, by leaf name.
      left: leaves that were solved by their importance alone, and why.
    """

    lmbda: float
    baseline: Mapping[str, float]
    final: Mapping[str, float]
    predicted: Mapping[str, float]
    left: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RateDistortion:
    """Error feedback under the outputs' curvature, at one Lagrangian weight of storage for all leaves.

    See :func:`bqjax.methods.rate_distortion.solver.bin_and_quant_rd`; the task must have ``outputs``.

    Attributes:
      lmbda: of a bit; None searches it.
      max_drop: of the metric on calibration data (a share: 0.01 is a point of accuracy).
      max_rank_drop: likewise of the ranking metric, which moves in finer steps; None sets no limit.
      target_bytes: the largest size of the file, in place of limits on drops.
      rules: which leaves.
      solver: how leaves are solved.
      steps, scan: of the search for drops, see :func:`bqjax.methods.rate_distortion.search.search_lambda`.
      positions, draws, max_width: see :func:`bqjax.sensitivity.curvature.output_curvature`.
      label: in tables.

    Raises:
      ValueError: a setting out of range; ``lmbda`` or ``target_bytes`` beside another limit.
    """

    lmbda: float | None = None
    max_drop: float | None = None
    max_rank_drop: float | None = None
    target_bytes: int | None = None
    rules: Sequence[Rule[Any]] | None = None
    solver: SolverConfig = field(default_factory=SolverConfig)
    steps: int = 7
    scan: int = 4
    positions: int = 2048
    draws: int = 4
    max_width: int = 4096
    label: str = "rate-distortion"

    def __post_init__(self) -> None:
        drops = self.max_drop is not None or self.max_rank_drop is not None
        if (self.lmbda is not None) + drops + (self.target_bytes is not None) != 1:
            raise ValueError("name one of lmbda, target_bytes, and limits on drops (max_drop, max_rank_drop)")
        for what in ("lmbda", "max_drop", "max_rank_drop"):
            value = getattr(self, what)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{what} must be finite and not negative, got {value}")
        if self.target_bytes is not None and self.target_bytes < 1:
            raise ValueError(f"target_bytes must be at least 1, got {self.target_bytes}")
        for what in ("steps", "positions", "draws", "max_width"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} must be at least 1, got {getattr(self, what)}")
        if self.scan < 0:
            raise ValueError(f"scan must not be negative, got {self.scan}")

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        if task.outputs is None:
            raise ValueError(f"task {task.name!r} has no outputs, which the curvature of its weights is taken from")
        curvature = output_curvature(
            task.outputs,
            task.params,
            task.calibration,
            key=key,
            positions=self.positions,
            draws=self.draws,
            max_width=self.max_width,
        )
        prepared = prepare(task.params, curvature, self.rules, self.solver)

        def tree_at(lmbda: float) -> Any:
            return bin_and_quant_rd(task.params, curvature, lmbda=lmbda, rules=self.rules, config=self.solver, prepared=prepared)

        fingerprint = {
            "params": digest(task.params),
            "batches": digest(list(task.calibration)),
            "key": digest(key),
            "config": repr((self.solver, self.rules, self.positions, self.draws, self.max_width)),
        }
        with Journal(state_path, fingerprint) as journal:

            def metrics(lmbda: float | None) -> dict[str, float]:
                def measure() -> dict[str, float]:
                    params = task.params if lmbda is None else decode(tree_at(lmbda))
                    return score_on(task, params, task.calibration).metrics

                return journal.measure("baseline" if lmbda is None else f"metrics {lmbda.hex()}", measure)

            baseline = metrics(None)
            unit = removal_distortion(prepared)
            if self.lmbda is not None:
                lmbda = self.lmbda
            elif self.target_bytes is not None:

                def size(lmbda: float) -> int:
                    return int(
                        journal.measure(f"bytes {lmbda.hex()}", lambda: {"bytes": float(file_bytes(tree_at(lmbda)))})["bytes"]
                    )

                lmbda = lambda_for_bytes(size, self.target_bytes, unit, progress=progress)
            else:
                limits = [
                    (by, limit)
                    for by, limit in ((task.metric, self.max_drop), (task.rank_by, self.max_rank_drop))
                    if limit is not None
                ]

                def excess(lmbda: float) -> float:
                    after = metrics(lmbda)
                    return max(float(signed(baseline, by) - signed(after, by)) - limit for by, limit in limits)

                lmbda = search_lambda(excess, unit, steps=self.steps, scan=self.scan, progress=progress)
            final = metrics(lmbda)
        tree = tree_at(lmbda)
        info = RateDistortionInfo(lmbda, baseline, final, predicted_distortion(task.params, tree, curvature), dict(curvature.left))
        return Compressed(tree, info, {"lmbda": f"{lmbda:.4g}"})
