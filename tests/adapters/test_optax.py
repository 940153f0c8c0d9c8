"""Gradient statistics inside an optax chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.adapters.optax import gradient_stats, record_gradients
from bqjax.sensitivity import gradient_stats as core

optax = pytest.importorskip("optax")


def test_updates_are_those_of_the_optimiser_alone_and_statistics_those_of_the_gradients():
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    alone, chained = optax.adam(0.1), optax.chain(record_gradients(), optax.clip(0.5), optax.adam(0.1))
    alone = optax.chain(optax.clip(0.5), alone)
    state, chained_state, expected = alone.init(params), chained.init(params), core.init(params)
    step = jax.jit(chained.update)
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), params)
        updates, state = alone.update(grads, state, params)
        same, chained_state = step(grads, chained_state, params)
        expected = core.update(expected, grads)
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(same), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(gradient_stats(chained_state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_it_is_found_wherever_it_stands():
    params = {"w": jnp.ones(3)}
    nested = optax.chain(optax.chain(optax.clip(1.0), record_gradients(None)), optax.sgd(0.1))
    assert int(gradient_stats(nested.init(params)).steps) == 0
    with pytest.raises(ValueError, match="holds 0 gradient statistics"):
        gradient_stats(optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match="holds 2 gradient statistics"):
        gradient_stats(optax.chain(record_gradients(), record_gradients()).init(params))
