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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.tree import named_leaves, replace

__all__ = ["output_importance"]


def output_importance(
    outputs: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Sequence[Any],
    *,
    key: jax.Array,
    draws: int = 4,
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Diagonal Gauss-Newton by Hutchinson probes: ``sum over outputs of (d output / d w)^2`` a weight, a mean over examples.

    With random signs ``v`` for all outputs of a batch, ``E[(J^T v)^2]`` is the diagonal of ``J^T J``: one backward pass a
    batch and draw.

    Args:
      outputs: ``outputs(params, batch) -> [n, ...]``, traceable; rows of padding must not depend on the parameters.
      params: parameters.
      batches: calibration data; no labels are used.
      key: a ``jax.random`` key.
      draws: passes over the data, each with new signs.
      names: the leaves wanted; None takes all of floating point.

    Returns:
      By leaf name, float32 arrays of the leaves' shapes, non-negative.

    Raises:
      ValueError: no batches, ``draws`` below 1, a leaf that does not exist, or gradients that are not finite.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
      >>> found = output_importance(lambda p, b: b @ p["w"], {"w": jnp.ones((2, 1))}, [x], key=jax.random.key(0), draws=64)
      >>> found["w"].shape  # expected: means of x^2, 5 and 2
      (2, 1)
    """
    if not len(batches):
        raise ValueError("no batches to take gradients on: the calibration data holds no examples")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    leaves = named_leaves(params)
    if names is None:
        names = [name for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    replace(params, dict.fromkeys(names))  # names the leaf that does not exist
    chosen = {name: leaves[name] for name in names}

    @jax.jit
    def squares(chosen: dict[str, jax.Array], params: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        z, pull_back = jax.vjp(lambda c: outputs(replace(params, c), batch), chosen)
        signs = jax.random.rademacher(key, z.shape, z.dtype)
        return {name: jnp.square(g.astype(jnp.float32)) for name, g in pull_back(signs)[0].items()}

    totals: dict[str, Any] = {}
    examples = 0
    for i, batch in enumerate(batches):
        examples += draws * jax.eval_shape(outputs, params, batch).shape[0]
        for draw in range(draws):
            new = squares(chosen, params, batch, jax.random.fold_in(key, i * draws + draw))
            totals = new if not totals else jax.tree.map(jnp.add, totals, new)
    result = {name: np.asarray(total) / examples for name, total in totals.items()}
    for name, array in result.items():
        if not math.isfinite(float(array.sum(dtype=np.float64))):
            raise ValueError(f"the outputs' gradient of leaf {name!r} is NaN or infinite on the calibration data")
    return result
