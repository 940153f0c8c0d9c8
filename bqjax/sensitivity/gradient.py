"""Full-batch gradient of the loss, by leaf: the measure of a weight's sensitivity in III-C of the paper.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.scoring import named_sums
from bqjax.core.task import Score, signed
from bqjax.core.tree import named_leaves, replace

__all__ = ["loss_gradient"]


def loss_gradient(score: Score, params: Any, batches: Sequence[Any], metric: str = "-loss") -> dict[str, np.ndarray]:
    """Full-batch gradient of the mean loss, ``d/dw (sum of sums / sum of counts)``, one backward pass a batch.

    Args:
      score: see :data:`bqjax.core.task.Score`; counts must not depend on the parameters.
      params: parameters, any pytree.
      batches: data; each batch counts by its examples.
      metric: what training would improve. ``"-loss"`` (lower is better) gives the gradient of ``loss``; a metric where
        higher is better gives that of its negative.

    Returns:
      By name of every floating-point leaf, float32 arrays of the leaves' shapes.

    Raises:
      ValueError: no batches or no counted examples; no metric of this name; gradients that are not finite, or zero for
        every weight, as those of accuracy are.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
      >>> score = lambda params, batch: ({"loss": (batch @ params["w"]).sum()}, len(batch))
      >>> loss_gradient(score, {"w": jnp.ones(2)}, [x])["w"].tolist()
      [2.0, 1.0]
    """
    if not len(batches):
        raise ValueError("no batches to take gradients on: the data holds no examples")
    chosen = {name: leaf for name, leaf in named_leaves(params).items() if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)}

    @jax.jit
    def backward(chosen: dict[str, jax.Array], params: Any, batch: Any) -> tuple[dict[str, jax.Array], jax.Array]:
        def loss(chosen: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            sums, count = score(replace(params, chosen), batch)
            return -signed(named_sums(sums), metric), jnp.asarray(count, jnp.float32)

        grads, count = jax.grad(loss, has_aux=True)(chosen)
        return {name: g.astype(jnp.float32) for name, g in grads.items()}, count

    totals, count = backward(chosen, params, batches[0])
    for batch in batches[1:]:
        totals, count = jax.tree.map(jnp.add, (totals, count), backward(chosen, params, batch))
    examples = float(count)
    if not examples > 0:
        raise ValueError("the score counted no examples in any batch")
    result = {name: np.asarray(total) / np.float32(examples) for name, total in totals.items()}
    for name, array in result.items():
        if not np.isfinite(array).all():
            raise ValueError(f"the gradient of {metric!r} is NaN or infinite in leaf {name!r}: repair the network or the score")
    if not any(array.any() for array in result.values()):
        raise ValueError(f"the gradient of {metric!r} is zero for every weight: name a smooth metric, such as '-loss'")
    return result
