"""What the paper's sensitivity figures show: which perturbations of which layers.

A *figure* makes :class:`~bqjax.sensitivity.sweeps.Candidate` entries for a network's parameters; :mod:`bqjax.experiment.sweep`
scores them. What the paper leaves open (draws, noise levels) is a field.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), figures 2, 3 and 5; III-A to III-C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np

from bqjax.core.rules import Rule, select
from bqjax.core.tree import by_size, named_leaves
from bqjax.methods.bins.gaussian import BinConfig, gaussian_bins
from bqjax.sensitivity.perturb import Choice, ChosenNoise, CodeNoise, HalfNoise, Kind
from bqjax.sensitivity.sweeps import Candidate

__all__ = [
    "BinsByLayer",
    "Figure",
    "NoiseByLayer",
    "RandomAgainstGradient",
    "RelativeBySize",
    "Statistic",
    "StatisticsAgainstRandom",
]

Rules = Sequence[Rule[Any]] | None
Form = Literal["levels", "bins", "choices"]
Statistic = Literal["gradient", "fisher", "outputs", "curvature"]


class Figure(Protocol):
    """What a figure shows.

    Attributes:
      name: of its files and in its rows; small letters, digits, ``_`` and ``-``.
      title: its heading.
      form: how series are drawn: lines over the layers for ordered ``"levels"``, the ``"bins"`` of each layer side by
        side, or ``"choices"`` to compare.
      uses_gradient: whether its perturbations take the loss's gradient.
    """

    form: ClassVar[Form]
    uses_gradient: ClassVar[bool]

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def candidates(self, params: Any) -> list[Candidate]:
        """What is scored, in the order of the figure's layers. Tags: ``series``, and ``bin`` or ``by`` where it has them."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoiseByLayer:
    """Drop against layer, one layer perturbed at a time, at several levels of noise (figure 2, first row).

    Attributes:
      levels: magnitudes, in the units of ``kind``, or of the layer's standard deviation.
      kind: of the noise.
      relative_to_std: levels are multiples of each layer's standard deviation.
      draws: noise draws a candidate.
      rules: which leaves; None takes those that would be compressed by default.
      name: see :class:`Figure`.
    """

    form: ClassVar[Form] = "levels"
    uses_gradient: ClassVar[bool] = False
    levels: Sequence[float] = (0.1, 0.2, 0.4)
    kind: Kind = "gaussian"
    relative_to_std: bool = True
    draws: int = 8
    rules: Rules = None
    name: str = "noise_by_layer"

    def __post_init__(self) -> None:
        if not len(self.levels):
            raise ValueError(f"figure {self.name!r} has no noise levels")
        if self.relative_to_std and self.kind not in ("gaussian", "uniform"):
            raise ValueError(f"figure {self.name!r}: relative_to_std goes with gaussian or uniform noise, not {self.kind!r}")

    @property
    def title(self) -> str:
        return f"{self.kind.capitalize()} noise on one layer at a time"

    def candidates(self, params: Any) -> list[Candidate]:
        leaves, made = named_leaves(params), []
        for leaf in select(params, self.rules).taken:
            unit = float(np.std(np.asarray(leaves[leaf]), dtype=np.float64)) if self.relative_to_std else 1.0
            for level in self.levels:
                tags = {"series": f"{level:g}" + (" std" if self.relative_to_std else "")}
                made.append(Candidate(leaf=leaf, perturb=self.kind, magnitude=level * unit, draws=self.draws, tags=tags))
        return made


@dataclass(frozen=True, kw_only=True)
class BinsByLayer:
    """Drop for each bin of each layer, one bin perturbed at a time (figure 2, second row).

    Bins are those of :func:`~bqjax.methods.bins.gaussian.gaussian_bins`: the inverse normal distribution fills them about equally.
    Those that hold no weight vanish, and the others are numbered from the lowest.

    Attributes:
      n_bins: bins a layer.
      magnitude, kind: of the noise: by default 0.5 times each weight, up or down.
      draws, rules, name: see :class:`NoiseByLayer`.
    """

    form: ClassVar[Form] = "bins"
    uses_gradient: ClassVar[bool] = False
    n_bins: int = 8
    magnitude: float = 0.5
    kind: Kind = "relative"
    draws: int = 8
    rules: Rules = None
    name: str = "bins_by_layer"

    @property
    def title(self) -> str:
        how = f"±{self.magnitude:.0%}" if self.kind == "relative" else f"{self.kind} {self.magnitude:g}"
        return f"One of {self.n_bins} bins at a time, {how}"

    def candidates(self, params: Any) -> list[Candidate]:
        made = []
        # A rule's setting belongs to methods; here every leaf has as many bins.
        rules = None if self.rules is None else [Rule[int | BinConfig](r.pattern, skip=r.skip) for r in self.rules]
        found = gaussian_bins(params, self.n_bins, rules)
        for leaf in select(params, rules).taken:
            bounds = [-math.inf, *np.asarray(found[leaf].edges, np.float64).tolist(), math.inf]
            for i, (lower, upper) in enumerate(pairwise(bounds), 1):
                tags = {"series": f"bin {i}", "bin": str(i)}
                made.append(
                    Candidate(
                        leaf=leaf,
                        perturb=self.kind,
                        magnitude=self.magnitude,
                        lower=lower,
                        upper=upper,
                        draws=self.draws,
                        tags=tags,
                    )
                )
        return made


@dataclass(frozen=True, kw_only=True)
class RelativeBySize:
    """Drop for each layer, from the largest layer to the smallest, under relative noise (figure 3).

    Layers of integer codes take the noise around their zero point, see :class:`~bqjax.sensitivity.perturb.CodeNoise`: a leaf
    ``x/codes`` has it beside it, as ``x/zero_point`` that broadcasts against the codes.

    Attributes:
      magnitude: each weight is multiplied by ``1 + magnitude`` or ``1 - magnitude``.
      largest: only so many of the largest layers; None takes all.
      draws, name: see :class:`NoiseByLayer`.
      rules: which leaves; None takes the float leaves that would be compressed by default, and all integer codes that have a
        zero point.
    """

    form: ClassVar[Form] = "choices"
    uses_gradient: ClassVar[bool] = False
    magnitude: float = 0.03
    largest: int | None = None
    draws: int = 8
    rules: Rules = None
    name: str = "relative_by_size"

    def __post_init__(self) -> None:
        _check_largest(self.name, self.largest)

    @property
    def title(self) -> str:
        return f"±{self.magnitude:.0%} of each weight, layers from large to small"

    def candidates(self, params: Any) -> list[Candidate]:
        tags = {"series": f"±{self.magnitude:.0%}"}
        taken = list(select(params, self.rules).taken)
        if self.rules is None:
            taken += [name for name in named_leaves(params) if _zero_point_name(params, name) is not None]
        return [
            Candidate(leaf=leaf, perturb=_relative(params, leaf), magnitude=self.magnitude, draws=self.draws, tags=tags)
            for leaf in by_size(params, taken)[: self.largest]
        ]


@dataclass(frozen=True, kw_only=True)
class StatisticsAgainstRandom:
    """Noise on the half of a layer that a statistic ranks highest against noise on a random half (figure 5, settled).

    Statistics, all on calibration data: ``"gradient"`` is the loss's gradient of the whole set (the paper's choice), ``"fisher"``
    the diagonal of the true Fisher information of a classifier's logits, ``"outputs"`` the diagonal of ``J^T J``, and
    ``"curvature"`` that of the Kronecker-factored curvature. All but the gradient need ``Task.outputs``.

    Attributes:
      statistics: in the order of the series.
      sigma, share, largest, draws, rules, name: see :class:`RandomAgainstGradient`.
    """

    form: ClassVar[Form] = "choices"
    uses_gradient: ClassVar[bool] = True
    statistics: Sequence[Statistic] = ("gradient", "fisher", "outputs", "curvature")
    sigma: float = 0.05
    share: float = 0.5
    largest: int | None = None
    draws: int = 8
    rules: Rules = None
    name: str = "statistics_against_random"

    def __post_init__(self) -> None:
        _check_largest(self.name, self.largest)
        for statistic in self.statistics:
            if statistic not in get_args(Statistic):
                raise ValueError(f"figure {self.name!r}: a statistic is one of {', '.join(get_args(Statistic))}, got {statistic!r}")
        if not len(self.statistics):
            raise ValueError(f"figure {self.name!r} has no statistics")

    @property
    def title(self) -> str:
        return f"Gaussian noise of {self.sigma:g} on {self.share:.0%} of a layer: random, or ranked highest by a statistic"

    def candidates(self, params: Any) -> list[Candidate]:
        how: dict[str, HalfNoise | ChosenNoise] = {"random": HalfNoise("gaussian", "random", self.share)}
        how |= {statistic: ChosenNoise("gaussian", statistic, self.share) for statistic in self.statistics}
        return [
            Candidate(leaf=leaf, perturb=noise, magnitude=self.sigma, draws=self.draws, tags={"series": by, "by": by})
            for leaf in by_size(params, list(select(params, self.rules).taken))[: self.largest]
            for by, noise in how.items()
        ]


@dataclass(frozen=True, kw_only=True)
class RandomAgainstGradient:
    """Noise on a random half of a layer against noise on the half of largest gradient, by size of the layer (figure 5).

    Attributes:
      sigma: standard deviation of the Gaussian noise, in the units of the weights.
      share: of each layer's weights that is perturbed.
      largest: only so many of the largest layers; None takes all.
      draws, rules, name: see :class:`NoiseByLayer`.
    """

    form: ClassVar[Form] = "choices"
    uses_gradient: ClassVar[bool] = True
    sigma: float = 0.05
    share: float = 0.5
    largest: int | None = None
    draws: int = 8
    rules: Rules = None
    name: str = "random_against_gradient"

    def __post_init__(self) -> None:
        _check_largest(self.name, self.largest)

    @property
    def title(self) -> str:
        return f"Gaussian noise of {self.sigma:g} on {self.share:.0%} of a layer: random, or of largest gradient"

    def candidates(self, params: Any) -> list[Candidate]:
        choices: tuple[tuple[Choice, str], ...] = (("random", "random"), ("largest", "largest gradient"))
        return [
            Candidate(
                leaf=leaf,
                perturb=HalfNoise("gaussian", by, self.share),
                magnitude=self.sigma,
                draws=self.draws,
                tags={"series": label, "by": by},
            )
            for leaf in by_size(params, list(select(params, self.rules).taken))[: self.largest]
            for by, label in choices
        ]


def _zero_point_name(params: Any, leaf: str) -> str | None:
    """The leaf with the zero point of integer codes, or None where ``leaf`` is no such codes."""
    leaves = named_leaves(params)
    layer, _, last = leaf.rpartition("/")
    beside = f"{layer}/zero_point"
    is_codes = last == "codes" and beside in leaves and getattr(leaves[leaf], "dtype", None) in (np.int8, np.uint8)
    return beside if is_codes else None


def _relative(params: Any, leaf: str) -> Kind | CodeNoise:
    """Relative noise for a leaf, around the zero point where it holds codes."""
    leaves = named_leaves(params)
    if (beside := _zero_point_name(params, leaf)) is None:
        return "relative"
    zero = np.asarray(leaves[beside])
    if (zero == zero.flat[0]).all():
        return CodeNoise("relative", (int(zero.flat[0]),))
    shape = np.shape(leaves[leaf])
    if zero.ndim != len(shape) or any(n not in (1, size) for n, size in zip(zero.shape, shape, strict=True)):
        raise ValueError(
            f"{beside!r} of shape {zero.shape} does not say which codes of {leaf!r}, {shape}, its zero points are of: "
            "give it the codes' number of dimensions, each as long as theirs or 1"
        )
    return CodeNoise("relative", tuple(zero.reshape(-1).tolist()), zero.shape)


def _check_largest(name: str, largest: int | None) -> None:
    if largest is not None and largest < 1:
        raise ValueError(f"figure {name!r}: largest must be at least 1, or None for all layers, got {largest}")
