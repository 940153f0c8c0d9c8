"""What a compressed tree does to the outputs: predicted by the curvature, leaf by leaf, and measured.

Both are half the squared change of the outputs of an example. The prediction is of second order and takes leaves one by one; where
the measured change is far above it, leaves err together or too much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import decode, is_compressed
from bqjax.core.tree import named_leaves, replace
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.leaf_curvature import LeafCurvature
from bqjax.sensitivity.shifts import Shift

__all__ = ["add_means", "leaf_change", "measured_distortion", "predicted_distortion"]


def leaf_change(before: Any, after: Any) -> np.ndarray:
    """Of a leaf that may be compressed, in float64, contiguous."""
    after = after.decode() if is_compressed(after) else after
    return np.ascontiguousarray(np.asarray(after, np.float64) - np.asarray(before, np.float64))


def add_means(bias: np.ndarray, shift: Shift, known: LeafCurvature, error: np.ndarray, sign: int) -> None:
    """Adds what a leaf's error changes in the mean of its outputs, as the bias would have to change for it, in place."""
    mean = (known.layout.to_rows(error) * np.asarray(known.mean, np.float64)[:, None, :]).sum(-1)
    np.add.at(bias.reshape(-1), shift.entries, sign * shift.gain * mean)


def predicted_distortion(params: Any, tree: Any, curvature: Curvature) -> dict[str, float]:
    """What compressed leaves are predicted to cost: half the squared change of the outputs of an example, leaf by leaf.

    What a leaf changes in the mean of its outputs is counted where a bias or shift stands behind it, with what the bias changes:
    the two may cancel.

    Args:
      params: the parameters.
      tree: a compressed tree of them, from any method.
      curvature: at ``params``. Leaves without one are taken by their importance.
    """
    before, after = named_leaves(params), named_leaves(tree)
    errors = {name: leaf_change(before[name], after[name]) for name in curvature.importance}
    shifts = {name: shift for name, shift in curvature.shifts.items() if shift.bias in errors}
    for name, shift in shifts.items():
        add_means(errors[shift.bias], shift, curvature[name], errors[name], 1)
    found = {}
    for name, importance in curvature.importance.items():
        error = errors[name]
        if not error.any():
            continue
        if name in curvature.leaves:
            known = curvature[name]
            e = known.layout.to_rows(error)
            cost = (np.matmul(e, np.asarray(known.inputs, np.float64)) * e).sum(-1)
            if name in shifts:
                cost = cost - np.square((e * np.asarray(known.mean, np.float64)[:, None, :]).sum(-1))
            found[name] = float((np.asarray(known.outputs, np.float64) * cost).sum() / 2)
        else:
            found[name] = float((np.asarray(importance, np.float64) * np.square(error)).sum() / 2)
    return found


def measured_distortion(
    outputs: Callable[[Any, Any], jax.Array], params: Any, tree: Any, batches: Sequence[Any], names: Sequence[str] | None = None
) -> float:
    """Half the squared change of the outputs of an example, a mean over all.

    Args:
      outputs: ``outputs(params, batch) -> [n, ...]``, traceable, zero for padding; give a jitted one for several calls.
      params: the parameters.
      tree: a compressed tree of them.
      batches: where one is a mapping with an entry ``"mask"`` of ``[n]``, examples of mask 0 don't count. Of a mask
        of another shape (tokens of texts) all rows do.
      names: only these leaves are taken from ``tree``; None takes all.

    Raises:
      ValueError: no examples.
    """
    found = decode(tree)
    if names is not None:
        leaves = named_leaves(found)
        found = replace(params, {name: leaves[name] for name in names})
    total, count = 0.0, 0.0
    for batch in batches:
        change = outputs(found, batch) - outputs(params, batch)
        mask = batch.get("mask") if isinstance(batch, Mapping) else None
        total += float(jnp.square(change.astype(jnp.float32)).sum())
        count += len(change) if mask is None or np.ndim(mask) != 1 else float(np.sum(np.asarray(mask) != 0))
    if not count:
        raise ValueError("no examples to measure a change of the outputs on")
    return total / count / 2
