"""Relu that is computed once is relu, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.models.activation import relu_once


@pytest.mark.parametrize("first", [-3.0, 0.0, 0.5, 7.0, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_relu(first, dtype):
    x = jnp.asarray([first, -1.0, 0.0, 1e-30, 2.5], dtype)
    g = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0], dtype)
    ours, theirs = (jax.vjp(jax.jit(f), x) for f in (relu_once, jax.nn.relu))
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1](g)[0], theirs[1](g)[0])
    assert ours[0].dtype == dtype


def test_the_compiler_keeps_the_division():
    """What keeps XLA from computing it again: were it simplified away, training would be slower and nothing else would tell."""
    compiled = jax.jit(lambda x: jnp.exp(relu_once(x)).T + relu_once(x)).lower(jnp.ones((4, 4))).compile()
    assert "divide(" in compiled.as_text()
