"""What the curvature makes of a perturbation before it is measured: the squared change of the outputs, at no forward pass.

Second order in the change ``dW`` of a leaf, an example's outputs change by ``tr(dW^T A dW diag(g))``
(:class:`~bqjax.sensitivity.leaf_curvature.LeafCurvature`). Where the metric is a loss of those outputs, the drop that a sweep
measures grows with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.tree import named_leaves
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.leaf_curvature import Layout
from bqjax.sensitivity.perturb import Perturbation
from bqjax.sensitivity.rounds import comparable
from bqjax.sensitivity.sweep_rows import Candidate, point_of
from bqjax.sensitivity.sweep_run import by_program

__all__ = ["out_of_reach", "predicted_effects", "rank_correlation"]

_REACH = 10.0
_GROUP = 32  # points of one call, so that few shapes are compiled


def predicted_effects(
    curvature: Curvature,
    params: Any,
    candidates: Sequence[Candidate],
    *,
    key: jax.Array,
    context: Mapping[str, Any] | None = None,
    draws: int = 4,
) -> np.ndarray:
    """Predicted squared change of an example's outputs under each candidate, a mean over draws.

    The draws are those that a sweep with the same key makes. Of a leaf that enters the outputs in no product, the importance of
    its weights stands in for the curvature; of one that the curvature says nothing about the prediction is NaN.

    Args:
      curvature: of the network's outputs, taken at ``params``.
      params: parameters.
      candidates: see :func:`~bqjax.sensitivity.sweeps.sweep`.
      key: the sweep's.
      context: the sweep's.
      draws: at most so many of each candidate.

    Returns:
      ``[n]`` float64.

    Raises:
      ValueError: the curvature is that of other parameters; ``draws`` below 1.
    """
    curvature.check(params)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    leaves, found = named_leaves(params), np.full(len(candidates), np.nan)
    for (name, perturbation), members in by_program(candidates, leaves):
        if name not in curvature.importance:
            continue
        points = [
            point_of(candidates[i], d, key, leaves[name].dtype) for i in members for d in range(min(draws, candidates[i].draws))
        ]
        owner = [i for i in members for _ in range(min(draws, candidates[i].draws))]
        known = curvature.leaves.get(name)
        own = (known.inputs, known.outputs) if known is not None else curvature.importance[name]
        layout = None if known is None else known.layout
        values = np.concatenate(
            [
                _effects(
                    perturbation, layout, leaves[name], own, points[at : at + _GROUP], None if context is None else context[name]
                )
                for at in range(0, len(points), _GROUP)
            ]
        )
        for i in members:
            found[i] = values[[place for place, one in enumerate(owner) if one == i]].mean()
    return found


def _effects(
    perturbation: Perturbation, layout: Layout | None, leaf: Any, own: Any, points: Sequence[Any], context: Any
) -> np.ndarray:
    filled = [*points, *([points[0]] * (_GROUP - len(points)))]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *filled)
    return np.asarray(_mapped(perturbation, layout, leaf, own, stacked, len(points), context), np.float64)[: len(points)]


@partial(jax.jit, static_argnums=(0, 1))
def _mapped(perturbation: Perturbation, layout: Layout | None, leaf: Any, own: Any, points: Any, n: Any, context: Any) -> jax.Array:
    def effect(point: Any) -> jax.Array:
        changed = perturbation(leaf, point) if context is None else perturbation(leaf, point, context)  # type: ignore[call-arg]
        change = changed.astype(jnp.float32) - leaf.astype(jnp.float32)
        if layout is None:
            return jnp.sum(own * jnp.square(change))
        inputs, outputs = own
        rows = layout.to_rows(change)
        return jnp.sum(outputs * jnp.einsum("grd,gde,gre->gr", rows, inputs, rows))

    def step(i: Any, out: jax.Array) -> jax.Array:
        return out.at[i].set(effect(jax.tree.map(lambda x: x[i], points)))

    return jax.lax.fori_loop(0, n, step, jnp.zeros(_GROUP))


def out_of_reach(predicted: np.ndarray, candidates: Sequence[Candidate], top: int, reach: float = _REACH) -> frozenset[int]:
    """Places of the candidates that cannot be among the ``top`` of their set as far as the prediction can be trusted.

    These are the ones whose predicted effect is ``reach`` times smaller than that of the last one in the top. One without a
    prediction is always within reach.

    Args:
      predicted: ``[n]``, from :func:`predicted_effects`.
      candidates: as many.
      top: how many are asked for.
      reach: how far predictions are trusted, as a factor.
    """
    out: set[int] = set()
    for one in comparable(candidates):
        known = sorted((predicted[i] for i in one if not np.isnan(predicted[i])), reverse=True)
        if len(known) > top:
            out.update(i for i in one if predicted[i] < known[top - 1] / reach)
    return frozenset(out)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation, ties by their mean rank; NaN where one side is constant.

    Example:
      >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 40.0, 30.0])
      0.5
    """
    x, y = (_ranks(np.asarray(v, np.float64)) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
