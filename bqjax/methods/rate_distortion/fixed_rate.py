"""Methods of a fixed number of bits a weight, on the same statistics: what entropy-constrained levels are compared with.

:class:`ErrorFeedback` is GPTQ: every row on an even grid of ``2^bits`` values over its own range, errors made good by later
weights. :class:`WeightedKMeans` is the dense part of SqueezeLLM: k-means of a leaf's weights, each weighed by what it does to the
outputs. Neither asks what an index costs; their files are entropy coded all the same, as every file here.

References:
  Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (arXiv 2210.17323).
  Kim et al., "SqueezeLLM", ICML 2024 (arXiv 2306.07629).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import Affine, Clustered, trim_codebook
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule, select
from bqjax.core.task import Task
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.scalar import kmeans_scalar
from bqjax.methods.base import Compressed
from bqjax.methods.rate_distortion.feedback import compensated_values
from bqjax.methods.rate_distortion.leaf import LeafStats, leaf_stats
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.leaf_curvature import Layout
from bqjax.sensitivity.task_statistics import task_curvature

__all__ = ["ErrorFeedback", "WeightedKMeans", "quantize_by_feedback", "share_by_importance"]

_SHRINKS = np.linspace(1.0, 0.4, 31)  # of a row's range
_BLOCK = 128
_SCALE = np.dtype(jnp.bfloat16)  # has the range of float32; codes are of the rounded scale


@dataclass(frozen=True, kw_only=True)
class _OnCurvature:
    """What both methods take: leaves, and how the curvature of a task is taken (once, for all methods that ask for the same)."""

    rules: Sequence[Rule[Any]] | None = None
    positions: int = 2048
    draws: int = 1
    examples: int = 32
    max_width: int = 4096

    def _curvature(self, task: Task, key: jax.Array) -> Curvature:
        settings = {what: getattr(self, what) for what in ("positions", "draws", "examples", "max_width")}
        return task_curvature(task, key=key, **settings)


@dataclass(frozen=True, kw_only=True)
class ErrorFeedback(_OnCurvature):
    """GPTQ: error feedback on even grids of ``2^bits`` values, a scale (bfloat16) and a zero point a row.

    Attributes:
      bits: 2 to 8.
      rules: which leaves; None takes those of two or more dimensions.
      positions, draws, examples, max_width: see :func:`bqjax.sensitivity.curvature.output_curvature`.
      label: in tables.

    Raises:
      ValueError: bits out of range.
    """

    bits: int = 4
    label: str = "GPTQ"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be from 2 to 8, got {self.bits}")

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        """See :class:`bqjax.methods.base.Method`."""
        return Compressed(quantize_by_feedback(task.params, self._curvature(task, key), self.bits, self.rules))


@dataclass(frozen=True, kw_only=True)
class WeightedKMeans(_OnCurvature):
    """k-means of a leaf's weights, weighed by the diagonal Gauss-Newton matrix of the outputs.

    Attributes:
      k: values of a leaf.
      rules: which leaves; None takes those of two or more dimensions.
      positions, draws, examples, max_width: see :func:`bqjax.sensitivity.curvature.output_curvature`.
      label: in tables.
    """

    k: int = 16
    label: str = "weighted k-means"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        """See :class:`bqjax.methods.base.Method`."""
        return Compressed(share_by_importance(task.params, self._curvature(task, key), self.k, self.rules))


def quantize_by_feedback(params: Any, curvature: Curvature, bits: int, rules: Sequence[Rule[Any]] | None = None) -> Any:
    """The tree with rows on even grids, rounded with error feedback; leaves without a curvature are rounded to nearest.

    Args:
      params, curvature: parameters and the curvature of the outputs in them.
      bits: of a weight, 2 to 8.
      rules: which leaves.

    Returns:
      The tree with :class:`~bqjax.core.leaves.Affine` leaves: a scale a row where rows are an axis of the leaf, or else one.

    Raises:
      ValueError: a curvature of other parameters; NaN or infinite weights, by leaf.
    """
    curvature.check(params)
    leaves, new = named_leaves(params), {}
    for name in select(params, rules).taken:
        leaf = np.asarray(leaves[name], np.float32)
        check_finite(name, leaf)
        known = curvature.leaves.get(name)
        axis = None if known is None else _row_axis(known.layout)
        scale, zero = _grid(leaf, axis, bits)
        if known is None:
            codes = np.rint(leaf / _along(scale, axis, leaf.ndim)) + _along(zero, axis, leaf.ndim)
        else:
            layout = known.layout
            # What a row's levels are, [G, rows, k].
            rows = [layout.to_rows(np.broadcast_to(_along(x, axis, leaf.ndim), leaf.shape))[..., 0] for x in (scale, zero)]
            levels = (np.arange(2**bits)[None, None] - rows[1][..., None]) * rows[0][..., None]
            codes = layout.to_leaf(_fed_back(layout.to_rows(leaf), leaf_stats(known), levels.astype(np.float32)))
        codes = np.clip(codes, 0, 2**bits - 1).astype(np.uint8)
        new[name] = Affine(codes, scale.astype(_SCALE), zero, axis, leaves[name].dtype, bits)
    return replace(params, new)


def _row_axis(layout: Layout) -> int | None:
    """The axis of the leaf that rows are, where they are one."""
    one = not layout.groups and len(layout.rows) == 1 and layout.view == layout.shape
    return layout.rows[0] if one else None


def _along(values: np.ndarray, axis: int | None, ndim: int) -> np.ndarray:
    return values if axis is None else values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _grid(leaf: np.ndarray, axis: int | None, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points int32 of the range, shrunk by the factor of least squared error, a row or the whole.

    Scales are float32 of what bfloat16 can hold.
    """
    rows = leaf.reshape(1, -1) if axis is None else np.moveaxis(leaf, axis, 0).reshape(leaf.shape[axis], -1)
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    last = 2**bits - 1
    least = np.full(len(rows), np.inf)
    scale, zero = np.ones(len(rows), np.float32), np.zeros(len(rows), np.int32)
    for shrink in _SHRINKS:
        own = np.maximum((high - low) * shrink / last, np.finfo(np.float32).tiny).astype(_SCALE).astype(np.float32)
        start = np.rint(-low * shrink / own).astype(np.int32)
        codes = np.clip(np.rint(rows / own[:, None]) + start[:, None], 0, last)
        error = np.square((codes - start[:, None]) * own[:, None] - rows).sum(1)
        better = error < least
        least, scale, zero = np.where(better, error, least), np.where(better, own, scale), np.where(better, start, zero)
    return (scale[0], zero[0]) if axis is None else (scale, zero)


@jax.jit
def _chosen(w: jax.Array, order: jax.Array, factor: jax.Array, levels: jax.Array) -> jax.Array:
    free = jnp.zeros(levels.shape[1:])
    rounded = partial(compensated_values, bits=free, lmbda=0.0, near=1, block=_BLOCK)
    one = jnp.ones(w.shape[1])
    return jax.lax.map(lambda at: rounded(at[0], at[1], at[2], one, at[3])[0], (w, order, factor, levels))


def _fed_back(rows: np.ndarray, stats: LeafStats, levels: np.ndarray) -> np.ndarray:
    """Indices ``[G, rows, d]`` of levels ``[G, rows, k]``."""
    return np.asarray(_chosen(jnp.asarray(rows), stats.order, stats.factor, jnp.asarray(levels)))


def share_by_importance(params: Any, curvature: Curvature, k: int, rules: Sequence[Rule[Any]] | None = None) -> Any:
    """Weight sharing by weighted k-means: ``k`` values a leaf, of the least error weighed by the importance of each weight.

    Args:
      params, curvature: parameters, and the curvature of the outputs in them, whose importance is used.
      k: values of a leaf.
      rules: which leaves.

    Returns:
      The tree with :class:`~bqjax.core.leaves.Clustered` leaves.

    Raises:
      ValueError: a curvature of other parameters; NaN or infinite weights, by leaf; ``k`` below 1.
    """
    curvature.check(params)
    leaves, new = named_leaves(params), {}
    for name in select(params, rules).taken:
        leaf = np.asarray(leaves[name])
        check_finite(name, leaf)
        h = np.asarray(curvature.importance[name], np.float64).reshape(-1)
        # Weights that calibration said nothing of must not go wherever they like.
        h = h / (h.mean() or 1.0) + 0.02
        found = kmeans_scalar(leaf.reshape(-1), k, h.astype(np.float32))
        codebook, indices = trim_codebook(np.asarray(found.codebook)[:, None].astype(leaf.dtype), np.asarray(found.indices))
        new[name] = Clustered(indices, codebook, leaf.shape, leaf.dtype)
    return replace(params, new)
