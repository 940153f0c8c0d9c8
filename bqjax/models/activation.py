"""Relu that is computed once: for training on CPUs, where XLA would compute it again for everything that reads it.

XLA's CPU compiler joins elementwise operations with what consumes them, and computes them anew for each consumer. In a residual
network the weight gradient of a convolution reads its input transposed, and that input is a relu of a sum of all blocks before it
in the stage: the compiler computes the whole chain again in the transposed order, one strided read after the other, for every
convolution. An operation that it takes for expensive, such as a division, it does not compute twice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["relu_once"]


def relu_once(x: jax.Array) -> jax.Array:
    """Relu, to the bit, whose value is kept in memory and not computed again. Traceable, with reverse-mode derivatives.

    On a CPU by ``jax.default_backend()`` at the time of tracing; elsewhere it is ``jax.nn.relu``. It pays in training, where
    gradients read the value again.

    Args:
      x: floating point, not empty.

    Example:
      >>> relu_once(jnp.array([-1.0, 0.0, 2.0])).tolist()
      [0.0, 0.0, 2.0]
    """
    if jax.default_backend() != "cpu":
        return jax.nn.relu(x)
    return _relu(x, _one(x))


def _one(x: jax.Array) -> jax.Array:
    """The number 1, by a path that the compiler cannot see the end of (NaN where the first entry is NaN)."""
    return jnp.maximum(jnp.minimum(jax.lax.stop_gradient(x).reshape(-1)[0], 1), 1)


@jax.custom_vjp
def _relu(x: jax.Array, one: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) / one


def _forward(x: jax.Array, one: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _relu(x, one)
    return y, (y, one)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, one = kept
    return jnp.where(y > 0, g, 0) / one, jnp.zeros_like(one)


_relu.defvjp(_forward, _backward)
