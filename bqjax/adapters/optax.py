"""GWK in an existing optax loop: gradient statistics as a link of the optimiser's chain.

Five lines, marked, turn a training loop into one that clusters after each epoch:

    >>> import jax, jax.numpy as jnp, optax
    >>> from bqjax import decode, gwk_cluster                                                    # 1
    >>> from bqjax.adapters.optax import gradient_stats, record_gradients                        # 2
    >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (32, 16))}}
    >>> loss = jax.grad(lambda p: ((jnp.ones((1, 32)) @ p["dense"]["kernel"]) ** 2).sum())
    >>> tx = optax.chain(record_gradients(), optax.adam(1e-3))                                   # 3
    >>> state, tree = tx.init(params), None
    >>> @jax.jit
    ... def train(params, state):
    ...     updates, state = tx.update(loss(params), state, params)
    ...     return optax.apply_updates(params, updates), state
    >>> for epoch in range(2):
    ...     for step in range(3):
    ...         params, state = train(params, state)
    ...     tree, info = gwk_cluster(params, gradient_stats(state).mean, key=jax.random.key(epoch), start=tree)  # 4
    ...     params = decode(tree)                                                                # 5
    >>> tree["dense"]["kernel"].codebook.shape
    (32, 4)
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from bqjax.sensitivity.gradient_stats import GradientStats, gradient_recorder

__all__ = ["gradient_stats", "record_gradients"]


def record_gradients(decay: float | None = 0.99) -> optax.GradientTransformation:
    """An optax transformation that lets updates pass unchanged and keeps their statistics.

    Its place is first in ``optax.chain``: there updates are still the gradients.

    Args:
      decay: see :func:`bqjax.sensitivity.gradient_stats.update`.
    """
    return optax.GradientTransformation(*gradient_recorder(decay))


def gradient_stats(state: Any) -> GradientStats:
    """The gradient statistics in the state of an optimiser, wherever :func:`record_gradients` stands in it.

    Raises:
      ValueError: there are none, or several.
    """
    found = [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, GradientStats)) if isinstance(x, GradientStats)]
    if len(found) != 1:
        raise ValueError(
            f"the optimiser's state holds {len(found)} gradient statistics: put one record_gradients() into optax.chain"
        )
    return found[0]
