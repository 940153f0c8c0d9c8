"""Entropy-constrained vector quantization under the curvature, behind the interface of :mod:`bqjax.methods.base`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.methods.base import Compressed
from bqjax.methods.rate_distortion.block_solver import BlockConfig, block_quant_rd, prepare_blocks
from bqjax.methods.rate_distortion.distortion import predicted_distortion
from bqjax.methods.rate_distortion.search import file_bytes, lambda_for_bytes
from bqjax.methods.rate_distortion.solver import SolverConfig, mean_removal_cost, prepare
from bqjax.sensitivity.task_statistics import task_curvature

__all__ = ["BlockRateDistortion", "BlockRateDistortionInfo"]


@dataclass(frozen=True)
class BlockRateDistortionInfo:
    """Report.

    Attributes:
      lmbda: of a bit.
      predicted: half the squared change of the outputs of an example, by leaf name.
    """

    lmbda: float
    predicted: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BlockRateDistortion:
    """Blocks of weights from shared codebooks, by error feedback under the outputs' curvature, at one Lagrangian weight of storage.

    See :func:`bqjax.methods.rate_distortion.block_solver.block_quant_rd`; the task must have ``outputs``.

    Attributes:
      lmbda: of a bit.
      target_bytes: or the largest size of the file.
      blocks: which leaves go to blocks, with a :class:`~bqjax.methods.rate_distortion.block_solver.BlockConfig` as the setting;
        others go by single weights.
      coder: that the file will be saved with, for ``target_bytes``.
      solver: damping, vectors and shifts.
      positions, draws, examples, max_width: see :func:`bqjax.sensitivity.curvature.output_curvature`.
      label: in tables.

    Raises:
      ValueError: not exactly one of ``lmbda`` and ``target_bytes``; no blocks.
    """

    lmbda: float | None = None
    target_bytes: int | None = None
    blocks: Sequence[Rule[BlockConfig]] = ()
    coder: str = "auto"
    solver: SolverConfig = field(default_factory=SolverConfig)
    positions: int = 2048
    draws: int = 1
    examples: int = 32
    max_width: int = 4096
    label: str = "rate-distortion, blocks"

    def __post_init__(self) -> None:
        if (self.lmbda is None) == (self.target_bytes is None):
            raise ValueError("name one of lmbda and target_bytes")
        if self.lmbda is not None and not (self.lmbda >= 0 and math.isfinite(self.lmbda)):
            raise ValueError(f"lmbda must be finite and not negative, got {self.lmbda}")
        if self.target_bytes is not None and self.target_bytes < 1:
            raise ValueError(f"target_bytes must be at least 1, got {self.target_bytes}")
        if not self.blocks:
            raise ValueError("blocks are rules that say which leaves are cut how: without them, take RateDistortion")

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        curvature = task_curvature(
            task, key=key, positions=self.positions, draws=self.draws, examples=self.examples, max_width=self.max_width
        )
        prepared = prepare_blocks(task.params, curvature, self.blocks, self.solver)

        def tree(lmbda: float) -> Any:
            return block_quant_rd(
                task.params, curvature, lmbda=lmbda, blocks=self.blocks, key=key, config=self.solver, prepared=prepared
            )

        def found(lmbda: float) -> dict[str, str]:
            return {"lmbda": f"{lmbda:.4g}"}

        def size(lmbda: float) -> int:
            return file_bytes(tree(lmbda), self.coder, {"task": task.name, "method": self.label, **found(lmbda)})

        lmbda = self.lmbda
        if lmbda is None:
            scalar = prepare(task.params, curvature, None, self.solver)
            n_weights = sum(rows.size for rows in scalar.rows.values())
            lmbda = lambda_for_bytes(size, self.target_bytes or 1, mean_removal_cost(scalar), n_weights, progress=progress)
        solved = tree(lmbda)
        return Compressed(
            solved, BlockRateDistortionInfo(lmbda, predicted_distortion(task.params, solved, curvature)), found(lmbda)
        )
