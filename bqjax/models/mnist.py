"""Small convolutional networks for images of 28 x 28 pixels, MNIST and Fashion-MNIST."""

from __future__ import annotations

import jax
from flax import nnx

__all__ = ["MNIST_NETWORKS", "MnistConv"]

# Channels of the two convolutions, their extent, units of the hidden layer.
MNIST_NETWORKS: dict[str, tuple[tuple[int, int], int, int]] = {
    "mnist_5x5": ((32, 64), 5, 1024),
    "mnist_large": ((16, 32), 3, 1980),
    "mnist_small": ((16, 32), 3, 128),
}


class MnistConv(nnx.Module):
    """Two convolutions, each with max pooling, and two dense layers; the large layer is ``fc1``.

    [28, 28, 1] -> conv -> max pool 2x2 -> conv -> max pool 2x2 -> flatten [49 channels] -> dense -> dense 10, with relu between.
    Its parameters are ``conv1``, ``conv2``, ``fc1`` and ``fc2``, each with ``kernel`` and ``bias``.

    Args:
      name: ``"mnist_5x5"``: 5x5, 32 and 64 channels, 1,024 units, 3,274,634 parameters, the convolutions and dense layers of the
        network in the pruning tutorial of TensorFlow's Model Optimization Toolkit (its file has 12.52 MB as well);
        ``"mnist_large"``: 3x3, 16 and 32 channels, 1,980 units, 3,131,230 parameters (12.52 MB), at a third of the computation;
        ``"mnist_small"``: the same convolutions with 128 units, 206,922 parameters.
      rngs: random numbers for the initial weights.

    Raises:
      ValueError: no network has that name.

    Example:
      >>> nnx.eval_shape(lambda: MnistConv("mnist_small", rngs=nnx.Rngs(0))(jax.numpy.zeros((2, 28, 28, 1)))).shape
      (2, 10)
    """

    def __init__(self, name: str, *, rngs: nnx.Rngs):
        if name not in MNIST_NETWORKS:
            raise ValueError(f"no network {name!r}: there are {', '.join(MNIST_NETWORKS)}")
        (first, second), extent, hidden = MNIST_NETWORKS[name]
        self.conv1 = nnx.Conv(1, first, (extent, extent), padding="SAME", rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (extent, extent), padding="SAME", rngs=rngs)
        self.fc1 = nnx.Linear(7 * 7 * second, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, 10]`` of images ``[n, 28, 28, 1]`` scaled to [0, 1]."""
        x = nnx.relu(_pooled(self.conv1(x)))
        x = nnx.relu(_pooled(self.conv2(x)))
        x = nnx.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc2(x)


def _pooled(x: jax.Array) -> jax.Array:
    """Max pooling 2x2. As a maximum over axes its gradient is several times faster on CPU than that of a window."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
