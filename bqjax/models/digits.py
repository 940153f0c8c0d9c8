"""A small convolutional network for scikit-learn's 8 x 8 handwritten digits."""

from __future__ import annotations

import jax
from flax import nnx

__all__ = ["DigitsConv"]


class DigitsConv(nnx.Module):
    """Three convolutions and two dense layers, 43,610 parameters.

    [8, 8, 1] -> conv 3x3, 16 -> conv 3x3, 32 -> max pool 2x2 -> conv 3x3, 48 -> flatten [768] -> dense 32 -> dense 10,
    with relu between. Its parameters are ``conv1``, ``conv2``, ``conv3``, ``fc1`` and ``fc2``, each with ``kernel`` and
    ``bias``.

    Args:
      rngs: random numbers for the initial weights.

    Example:
      >>> DigitsConv(rngs=nnx.Rngs(0))(jax.numpy.zeros((2, 8, 8, 1))).shape
      (2, 10)
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), padding="SAME", rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), padding="SAME", rngs=rngs)
        self.conv3 = nnx.Conv(32, 48, (3, 3), padding="SAME", rngs=rngs)
        self.fc1 = nnx.Linear(4 * 4 * 48, 32, rngs=rngs)
        self.fc2 = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, 10]`` of images ``[n, 8, 8, 1]`` scaled to [0, 1]."""
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.conv2(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.conv3(x))
        x = nnx.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc2(x)
