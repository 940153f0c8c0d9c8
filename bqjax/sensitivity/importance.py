"""Diagonal Gauss-Newton of a network's outputs by Hutchinson probes: how much each weight matters to them, with no labels.

Perturbing every weight by itself is out of reach for all but the smallest networks. To second order the change of the
outputs ``z`` under a small change ``dw`` of the weights is ``sum |J dw|^2``, and the diagonal of ``J^T J`` is what one
weight contributes on its own. Section III-C of the paper takes the absolute gradient of the loss for the same purpose;
the outputs' Jacobian needs no labels, and does not vanish on examples that the network has learnt.

References:
  Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-C.
  Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in Statistics 19(2), 1990.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bqjax.core.tree import named_leaves, replace
from bqjax.sensitivity.leaf_curvature import Layout
from bqjax.sensitivity.spread import smaller, summed

__all__ = ["output_importance", "output_moments"]


def output_importance(
    outputs: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Sequence[Any],
    *,
    key: jax.Array,
    draws: int = 4,
    names: Sequence[str] | None = None,
    examples: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Diagonal Gauss-Newton by Hutchinson probes: ``sum over outputs of (d output / d w)^2`` a weight, a mean over examples.

    With random signs ``v`` for all outputs of a batch, ``E[(J^T v)^2]`` is the diagonal of ``J^T J``: one backward pass a
    batch and draw. The relative deviation of one weight's estimate is about ``sqrt(2 / (batches * draws))``, whatever the
    batches' size: small batches tell more at the same cost.

    Args:
      outputs: ``outputs(params, batch) -> [n, ...]``, traceable; rows of padding must not depend on the parameters.
      params: parameters.
      batches: calibration data; no labels are used.
      key: a ``jax.random`` key.
      draws: passes over the data, each with new signs.
      names: the leaves wanted; None takes all of floating point.
      examples: batches are cut to at most so many where all their arrays are ``[n, ...]``; None takes them as they are.
      mesh: devices to spread batches over, a mesh of one axis; None takes the one that ``jax.default_device`` names, or else
        all. Another number of devices gives the same to rounding.

    Returns:
      By leaf name, float32 arrays of the leaves' shapes, non-negative.

    Raises:
      ValueError: no batches, ``draws`` or ``examples`` below 1, a leaf that does not exist, or gradients that are not finite.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
      >>> found = output_importance(lambda p, b: b @ p["w"], {"w": jnp.ones((2, 1))}, [x], key=jax.random.key(0), draws=64)
      >>> found["w"].shape  # expected: means of x^2, 5 and 2
      (2, 1)
    """
    return output_moments(outputs, params, batches, {}, key=key, draws=draws, names=names, examples=examples, mesh=mesh)[0]


def output_moments(
    outputs: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Sequence[Any],
    layouts: Mapping[str, Layout],
    *,
    key: jax.Array,
    draws: int = 4,
    names: Sequence[str] | None = None,
    examples: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The importance of all leaves, and of some the blocks of ``J^T J`` that connect the inputs of a row, summed over rows.

    Args:
      layouts: of those leaves, by name; each must be among ``names``.
      outputs, params, batches, key, draws, names, examples, mesh: see :func:`output_importance`.

    Returns:
      By leaf name what :func:`output_importance` gives, and ``[G, d, d]`` float32 of the leaves in ``layouts``.

    Raises:
      ValueError: see :func:`output_importance`.
    """
    if not len(batches):
        raise ValueError("no batches to take gradients on: the calibration data holds no examples")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if examples is not None and examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    leaves = named_leaves(params)
    if names is None:
        names = [name for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    replace(params, dict.fromkeys(names))  # names the leaf that does not exist
    chosen = list(names)

    def squares(params: Any, batch: Any, key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        leaves = named_leaves(params)
        z, pull_back = jax.vjp(lambda c: outputs(replace(params, c), batch), {name: leaves[name] for name in chosen})
        signs = jax.random.rademacher(key, z.shape, z.dtype)
        found = {name: g.astype(jnp.float32) for name, g in pull_back(signs)[0].items()}
        rows = {name: layout.to_rows(found[name]) for name, layout in layouts.items()}
        second = {name: jnp.einsum("gri,grj->gij", x, x) for name, x in rows.items()}
        return {name: jnp.square(g) for name, g in found.items()}, second

    sizes = [jax.eval_shape(outputs, params, batch).shape[0] for batch in batches]
    if examples is not None:
        batches, sizes = smaller(batches, sizes, examples)
    totals = summed(squares, params, batches, key=key, draws=draws, mesh=mesh)
    result, second = ({name: total / (draws * sum(sizes)) for name, total in found.items()} for found in totals)
    for name, array in result.items():
        if not math.isfinite(float(array.sum(dtype=np.float64))):
            raise ValueError(f"the outputs' gradient of leaf {name!r} is NaN or infinite on the calibration data")
    return result, second
