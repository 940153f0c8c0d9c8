"""Settings of the bin search, and the report that it gives beside the bins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bqjax.methods.bins.gaussian import BinConfig
from bqjax.sensitivity.perturb import KINDS, Kind

__all__ = ["LayerReport", "SearchConfig", "SearchInfo", "Step"]

_SMALL = 10_000


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How bins are searched for one leaf, or for a group of leaves that shares them.

    Attributes:
      n_bins: bins to start from; None takes 8, or 4 for leaves of fewer than 10,000 weights.
      max_bins: the search never makes more.
      sigma, mean: placement of the first bins, see :class:`bqjax.methods.bins.gaussian.BinConfig`.
      sigma_scales: factors on ``sigma``; the search starts once from each and takes the best end. A scale above 1 makes
        the middle bins fuller than the outer ones, so that the indices have less entropy.
      kind: how a bin is perturbed to learn its sensitivity, see :class:`bqjax.sensitivity.perturb.Noise`. The paper
        uses ``"gaussian"``, and ``"relative"`` for its figures; ``"collapse"`` replaces the bin by its mean, which is
        what compressing it will do, and needs one draw.
      magnitude: of the perturbation. None takes 0.5 for ``"relative"``; for ``"gaussian"`` and ``"uniform"`` the largest
        of ``levels`` times the leaf's standard deviation at which noise on the whole leaf costs less than ``tolerance``.
      levels: ascending factors for the sweep that finds the magnitude.
      draws: independent draws that a bin's drop is averaged over.
      tolerance: stop as soon as no bin's drop of the metric exceeds it (the paper: 0.02). None does not stop for it.
      target_drop: stop as soon as compressing the leaf costs at most this of the metric.
      target_rank_drop: likewise for the metric that ranks the bins; where both are set, both must hold. Among several
        starts that reach their targets the one with the lowest entropy is taken, where none does the one that loses least.
      lmbda: Lagrangian weight of a bit of indices (at their entropy), in units of the ranking metric. The search then does not
        stop at the targets, and takes from all states of all starts the one of least ``rank drop + lmbda * bits``, among those
        that reach the targets where some do. The same ``lmbda`` for all leaves spends the bytes where they help most. None: off.
      max_drop: a leaf whose compression costs more than this, measured against the network with the leaves accepted
        before it, is left as it was (the paper: 0.01). None accepts every leaf.
      max_total_drop: likewise, measured against the original network.
    """

    n_bins: int | None = None
    max_bins: int = 16
    sigma: float | None = None
    sigma_scales: tuple[float, ...] = (1.0,)
    mean: float | None = None
    kind: Kind = "collapse"
    magnitude: float | None = None
    levels: tuple[float, ...] = (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)
    draws: int = 4
    tolerance: float | None = 0.02
    target_drop: float | None = None
    target_rank_drop: float | None = None
    lmbda: float | None = None
    max_drop: float | None = 0.01
    max_total_drop: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for what in ("n_bins", "max_bins", "draws"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        if self.n_bins is not None and self.n_bins > self.max_bins:
            raise ValueError(f"n_bins {self.n_bins} exceeds max_bins {self.max_bins}: raise max_bins")
        if self.magnitude is not None and not (self.magnitude > 0 and math.isfinite(self.magnitude)):
            raise ValueError(f"magnitude must be positive and finite, got {self.magnitude}")
        if not self.levels or list(self.levels) != sorted(self.levels) or self.levels[0] <= 0:
            raise ValueError(f"levels must be positive and ascending, got {self.levels}")
        if self.kind in ("gaussian", "uniform") and self.magnitude is None and self.tolerance is None:
            raise ValueError(f"a {self.kind} search needs a magnitude, or a tolerance to find it by")

        if not self.sigma_scales:
            raise ValueError("sigma_scales must name at least one factor")
        self.starts(1)  # BinConfig checks sigma, mean and the factors

    def starts(self, size: int) -> list[BinConfig]:
        """Placements of the first bins for a leaf of ``size`` weights."""
        n_bins = self.n_bins or min(self.max_bins, 4 if size < _SMALL else 8)
        return [BinConfig(n_bins=n_bins, sigma=self.sigma, sigma_scale=s, mean=self.mean) for s in self.sigma_scales]


@dataclass(frozen=True)
class Step:
    """One state of a leaf's bins along the search.

    Attributes:
      edges: inner edges.
      bin_drops: drop of the metric when one bin is perturbed, a number a bin.
      bin_rank_drops: likewise for the metric that ranks the bins.
      metrics: of the network with this leaf compressed to these bins.
      entropy: bits per index.
    """

    edges: tuple[float, ...]
    bin_drops: tuple[float, ...]
    bin_rank_drops: tuple[float, ...]
    metrics: Mapping[str, float]
    entropy: float

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.edges) + 1


@dataclass(frozen=True)
class LayerReport:
    """What the search did to a leaf or group.

    Attributes:
      names: its leaves.
      size: their number of weights.
      accepted: False where the leaf was left as it was.
      reason: why the search of this leaf ended, or why the leaf was left.
      drop, rank_drop: drops by compressing it, against the network with the leaves accepted before.
      magnitude: of the perturbation, None for ``"collapse"``.
      result: the bins that were taken.
      paths: the states of the bins from each start.
    """

    names: tuple[str, ...]
    size: int
    accepted: bool
    reason: str
    drop: float
    rank_drop: float
    magnitude: float | None
    result: Step
    paths: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True)
class SearchInfo:
    """Report of a search; all metrics are on the batches it was given, the calibration data.

    Attributes:
      metric, rank_by: as used; a leading minus means that lower is better.
      baseline, final: metrics before and after.
      layers: one report a leaf or group, in the order of the search.
      left: leaves outside the search, with the reason.
      n_scores: how often the network was scored, and ``n_resumed`` of them answered by the state file.
      seconds: wall time.
    """

    metric: str
    rank_by: str
    baseline: Mapping[str, float]
    final: Mapping[str, float]
    layers: tuple[LayerReport, ...]
    left: Mapping[str, str]
    n_scores: int
    n_resumed: int
    seconds: float
