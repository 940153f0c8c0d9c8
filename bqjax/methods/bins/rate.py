"""Settings of entropy-constrained scalar quantization: a ``lmbda``, or the limits within which it is the highest."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RateConfig"]


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """Settings of entropy-constrained scalar quantization, see :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq`.

    Attributes:
      lmbda: Lagrangian weight of a bit; None finds the highest at which the drops keep their limits.
      max_drop: of the metric on calibration data, all leaves compressed together.
      max_rank_drop: likewise of the ranking metric, which moves in finer steps; None sets no limit.
      steps: of the bisection for ``lmbda``; each compresses and scores the network once.
      floor: share of the mean importance that every weight has at least.
      draws: random signs for the importance, see :func:`bqjax.sensitivity.importance.output_importance`.
      iterations: of the alternation between values and assignments.
    """

    lmbda: float | None = None
    max_drop: float = 0.01
    max_rank_drop: float | None = None
    steps: int = 8
    floor: float = 0.02
    draws: int = 4
    iterations: int = 20

    def __post_init__(self) -> None:
        if self.lmbda is not None and not self.lmbda >= 0:
            raise ValueError(f"lmbda must not be negative, got {self.lmbda}")
        for what in ("steps", "draws", "iterations"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} must be at least 1, got {getattr(self, what)}")
