"""Rate-distortion optimal quantization of a whole tree: error feedback under the outputs' curvature, one lmbda for all leaves.

Minimises ``sum over leaves of sum_r g_r / 2 (w_r - v_r)^T A (w_r - v_r) + lmbda * bits(v)``: kernels by their curvature
(:mod:`bqjax.methods.rate_distortion.leaf`), leaves that have none by their importance alone, and vectors (biases, scales and shifts
of normalisations) on a line of few integers (:mod:`bqjax.methods.rate_distortion.vectors`).

References:
  Hassibi, Stork 1992; Frantar et al. 2023 (arXiv 2210.17323); Chou, Lookabaugh, Gray 1989: see
  :mod:`bqjax.methods.rate_distortion.feedback`.
  Conzelmann, Bamler 2025 (arXiv 2505.18758): error feedback with a rate term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import Clustered, CompressedLeaf, Scaled, exponents_of, trim_codebook
from bqjax.core.rules import Rule, select
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.fixed_levels import pruned
from bqjax.methods.rate_distortion.distortion import add_means, leaf_change
from bqjax.methods.rate_distortion.leaf import (
    LeafStats,
    QuantizedRows,
    diagonal_stats,
    in_units,
    leaf_stats,
    quantize_rows,
    unbiased,
)
from bqjax.methods.rate_distortion.row_steps import step_exponents, to_units
from bqjax.methods.rate_distortion.vectors import affine_vector
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.leaf_curvature import Layout
from bqjax.sensitivity.shifts import Shift

__all__ = [
    "Prepared",
    "SolverConfig",
    "bin_and_quant_rd",
    "mean_removal_cost",
    "prepare",
    "removal_distortion",
    "shifts_taken",
]


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How leaves are solved.

    Attributes:
      damping: share of the mean diagonal that is added to the inputs' second moment, see
        :func:`bqjax.methods.rate_distortion.leaf.leaf_stats`.
      floor: share of the mean importance that every weight of a leaf without curvature has at least.
      step_scales: factors on the step in balance; each leaf takes the best of them at its lmbda.
      passes: over a leaf, each at the costs of indices that the last one led to.
      sweeps: of coordinate descent after each pass.
      vectors: whether vectors go to 8 bits or fewer where outputs don't notice; False leaves them.
      shift: whether the bias or BatchNorm shift behind a leaf takes up the mean change of its outputs, so that only the inputs'
        covariance counts for the leaf's errors.
      row_steps: whether rows of unequal importance get steps of their own, in powers of two, where that takes fewer bits: see
        :mod:`bqjax.methods.rate_distortion.row_steps`. False, with ``step_scales=(1.2,)``, does what earlier releases did.
      unbiased: whether levels are scaled so that the outputs of each leaf keep their size, at no bytes: see
        :func:`bqjax.methods.rate_distortion.leaf.unbiased`.
    """

    damping: float = 0.01
    floor: float = 0.02
    step_scales: tuple[float, ...] = (1.6,)
    passes: int = 2
    sweeps: int = 4
    vectors: bool = True
    shift: bool = True
    row_steps: bool = True
    unbiased: bool = False

    def __post_init__(self) -> None:
        for what in ("damping", "floor"):
            value = getattr(self, what)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{what} must be positive and finite, got {value}")
        if not self.step_scales or not all(s > 0 and math.isfinite(s) for s in self.step_scales):
            raise ValueError(f"step_scales must be positive and finite numbers, got {self.step_scales}")
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}")
        if self.sweeps < 0:
            raise ValueError(f"sweeps must not be negative, got {self.sweeps}")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What does not depend on lmbda, so that a search prepares once.

    Attributes:
      rows: ``[G, rows, d]`` weights by name, of the leaves that get levels, in the units of their exponents.
      stats: of each, in these units.
      layouts: of each.
      exponents: of the rows' units by name, of the leaves whose rows have steps of their own; each broadcasts with its leaf.
      vectors: importance of the vectors that go to a line of integers, by name.
      shifts: by name, of the leaves whose outputs' mean is corrected.
    """

    rows: Mapping[str, np.ndarray]
    stats: Mapping[str, LeafStats]
    layouts: Mapping[str, Layout]
    exponents: Mapping[str, np.ndarray]
    vectors: Mapping[str, np.ndarray]
    shifts: Mapping[str, Shift]


def _diagonal_layout(shape: Sequence[int]) -> Layout:
    """Each weight a row of its own."""
    view = (*shape, 1)
    return Layout(shape=tuple(shape), view=view, groups=(), rows=tuple(range(len(shape))), inputs=(len(shape),))


def prepare(
    params: Any, curvature: Curvature, rules: Sequence[Rule[Any]] | None = None, config: SolverConfig | None = None
) -> Prepared:
    """Checks parameters against their curvature, and factors the curvature of every leaf.

    Args:
      params, curvature, rules, config: see :func:`bin_and_quant_rd`.

    Raises:
      ValueError: see :func:`bin_and_quant_rd`.
    """
    config = config or SolverConfig()
    curvature.check(params)
    leaves, taken = named_leaves(params), list(select(params, rules).taken)
    rows: dict[str, np.ndarray] = {}
    stats: dict[str, LeafStats] = {}
    layouts: dict[str, Layout] = {}
    exponents: dict[str, np.ndarray] = {}
    vectors: dict[str, np.ndarray] = {}
    shifts = shifts_taken(params, curvature, rules, config)
    small = [n for n, x in leaves.items() if config.vectors and rules is None and _is_vector(x) and n in curvature.importance]
    for name in [*taken, *small]:
        leaf = leaves[name]
        check_finite(name, leaf)
        if name not in curvature.importance:
            raise ValueError(
                f"leaf {name!r} has neither curvature nor importance: take the curvature of it too, or skip it by a rule"
            )
        if np.ndim(leaf) < 2 and _is_vector(leaf):
            vectors[name] = np.asarray(curvature.importance[name])
            continue
        if name in curvature.leaves:
            known = curvature[name]
            layouts[name], stats[name] = known.layout, leaf_stats(known, centred=name in shifts, damping=config.damping)
            own = step_exponents(known.layout, np.asarray(stats[name].importance)) if config.row_steps else None
            if own is not None:
                exponents[name], stats[name] = own, in_units(stats[name], known.layout, own)
        else:
            layouts[name] = _diagonal_layout(np.shape(leaf))
            stats[name] = diagonal_stats(np.asarray(curvature.importance[name]), floor=config.floor)
        rows[name] = _rows(name, np.asarray(leaf, np.float32), layouts, exponents)
    return Prepared(rows=rows, stats=stats, layouts=layouts, exponents=exponents, vectors=vectors, shifts=shifts)


def _rows(name: str, leaf: np.ndarray, layouts: Mapping[str, Layout], exponents: Mapping[str, np.ndarray]) -> np.ndarray:
    """``[G, rows, d]`` weights in the units of their rows."""
    return layouts[name].to_rows(to_units(leaf, exponents[name]) if name in exponents else leaf)


def shifts_taken(params: Any, curvature: Curvature, rules: Sequence[Rule[Any]] | None, config: SolverConfig) -> dict[str, Shift]:
    """By name, the leaves whose outputs' mean is corrected, and where."""
    taken = select(params, rules).taken
    # Rules say which leaves may change, and that holds for the biases that take up a mean.
    return {
        name: shift
        for name, shift in curvature.shifts.items()
        if config.shift and name in taken and (rules is None or shift.bias in taken)
    }


def _is_vector(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and np.ndim(leaf) == 1 and np.size(leaf) > 0


def bin_and_quant_rd(
    params: Any,
    curvature: Curvature,
    *,
    lmbda: float,
    rules: Sequence[Rule[Any]] | None = None,
    config: SolverConfig | None = None,
    prepared: Prepared | None = None,
    solved: Mapping[str, CompressedLeaf] | None = None,
) -> Any:
    """Quantizes parameters at a Lagrangian weight of storage. Pure, not traceable.

    Args:
      params: parameters, any pytree, concrete.
      curvature: of the outputs in these parameters (:func:`bqjax.sensitivity.curvature.output_curvature`).
      lmbda: of a bit, in the units of half the squared change of the outputs of an example. At 0, grids are as fine as indices of
        16 bits allow, and weights round to them.
      rules: which leaves; None takes floating-point leaves of two or more dimensions and, by ``config.vectors``, vectors.
      config: settings.
      prepared: from :func:`prepare` of the same arguments, for several lmbdas.
      solved: leaves by name that are taken as they are; what they change in the mean of their outputs is made good like that of the
        others.

    Returns:
      The tree with :class:`~bqjax.core.leaves.Clustered` leaves for kernels, whose codebooks hold the levels in use (within
      :class:`~bqjax.core.leaves.Scaled` where rows have steps of their own), and :class:`~bqjax.core.leaves.Affine` for vectors
      where that pays. Zeros of pruned kernels, of which 5 % or more of the weights
      are zero, stay zeros: errors are passed on to the other weights alone.

    Raises:
      ValueError: a negative, infinite or NaN lmbda; a curvature of other parameters; NaN weights, by leaf; a leaf that has neither
        curvature nor importance; rules that match nothing.
    """
    if not (lmbda >= 0 and math.isfinite(lmbda)):
        raise ValueError(f"lmbda must be finite and not negative, got {lmbda}")
    config = config or SolverConfig()
    prepared = prepared if prepared is not None else prepare(params, curvature, rules, config)
    leaves = named_leaves(params)
    new: dict[str, Any] = {}
    moved: dict[str, np.ndarray] = {}
    # A bias is solved after the leaves whose mean it takes up.
    for name in sorted(prepared.rows, key=lambda name: name not in prepared.shifts):
        layout = prepared.layouts[name]
        if solved is not None and name in solved:
            new[name] = solved[name]
            _take_up(moved, leaves, name, new[name], prepared, curvature)
            continue
        rows = prepared.rows[name]
        if name in moved:
            rows = _rows(name, moved[name].astype(np.float32), prepared.layouts, prepared.exponents)
        found = quantize_rows(
            rows,
            prepared.stats[name],
            lmbda,
            step_scales=config.step_scales,
            passes=config.passes,
            sweeps=config.sweeps,
            hold_zeros=pruned(leaves[name]) is not None and name not in moved,
        )
        found = unbiased(found, rows, prepared.stats[name]) if config.unbiased else found
        new[name] = _compressed(found, layout, prepared.exponents.get(name), leaves[name].dtype)
        _take_up(moved, leaves, name, new[name], prepared, curvature)
    for name, bias in moved.items():
        if name not in prepared.rows:
            new[name] = bias.astype(leaves[name].dtype)
    for name, importance in prepared.vectors.items():
        affine = affine_vector(np.asarray(new.get(name, leaves[name])), importance, lmbda)
        if affine is not None:
            new[name] = affine
    return replace(params, new)


def _take_up(
    moved: dict[str, np.ndarray], leaves: Mapping[str, Any], name: str, new: Any, prepared: Prepared, curvature: Curvature
) -> None:
    """Moves the bias behind a leaf by what the leaf's errors change in the mean of its outputs."""
    if name in prepared.shifts:
        shift = prepared.shifts[name]
        bias = moved.setdefault(shift.bias, np.array(leaves[shift.bias], np.float64))
        add_means(bias, shift, curvature[name], leaf_change(leaves[name], new), -1)


def _compressed(found: QuantizedRows, layout: Layout, exponents: np.ndarray | None, dtype: Any) -> Clustered | Scaled:
    if exponents is None:
        return _clustered(found, layout, dtype)
    return Scaled(_clustered(found, layout, np.float32), exponents_of(exponents), np.dtype(dtype))


def _clustered(found: QuantizedRows, layout: Layout, dtype: Any) -> Clustered:
    """The leaf that a file stores: levels in use, in the shortest type that holds them."""
    index = layout.to_leaf(found.indices).reshape(-1)
    used = np.unique(index)
    number = np.arange(len(found.levels)) - found.zero
    low, high = int(number[used[0]]), int(number[used[-1]])
    step = np.float32(found.levels[found.zero + 1] - found.levels[found.zero])
    if len(used) > 8 and low >= -128 and high <= 127:
        # An integer a level, and the step once.
        codebook, indices = trim_codebook(np.clip(number, -128, 127).astype(np.int8), index)
        return Clustered(indices, codebook[:, None], layout.shape, dtype, scale=np.asarray(step), offset=np.zeros((), np.float32))
    fits = max(abs(low), abs(high)) <= 32  # float16 is then off by a 64th of a step at most
    kind = np.float16 if fits and np.abs(found.levels[used]).max() < 6e4 and step > 1e-4 else np.float32
    codebook, indices = trim_codebook(found.levels, index)  # levels that no weight takes may be beyond float16
    return Clustered(indices, codebook.astype(kind)[:, None], layout.shape, dtype)


def removal_distortion(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """What the removal of a weight costs, by the damped curvature of its leaf.

    Returns:
      ``(costs, weights)``, ``[n]`` each: of every row of every leaf the mean cost of a weight, and how many weights it has.
    """
    costs, weights = [np.zeros(0)], [np.zeros(0)]
    for name, w in prepared.rows.items():
        stats = prepared.stats[name]
        ordered = np.take_along_axis(w.astype(np.float64), np.asarray(stats.order)[:, None, :], axis=2)
        through = np.matmul(ordered, np.asarray(stats.moment, np.float64))
        real = np.broadcast_to(stats.real.sum(1)[:, None], w.shape[:2])
        of_rows = np.asarray(stats.importance, np.float64) * (through * ordered).sum(-1) / 2
        costs.append((of_rows / np.maximum(real, 1)).reshape(-1))
        weights.append(real.reshape(-1).astype(np.float64))
    return np.concatenate(costs), np.concatenate(weights)


def mean_removal_cost(prepared: Prepared) -> float:
    """The lmbda at which a bit is worth what the removal of a weight costs, a mean over all weights."""
    costs, weights = removal_distortion(prepared)
    return float((costs * weights).sum() / max(1.0, weights.sum())) or 1.0
