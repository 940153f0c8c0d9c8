"""VGG16 and VGG19: stacks of 3x3 convolutions and three dense layers.

With 1000 classes and images of 224 x 224 they have 138,357,544 and 143,667,240 parameters, most of them
(123,642,856) in the dense layers.

References:
  Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015.
  https://arxiv.org/abs/1409.1556
"""

from __future__ import annotations

import jax
from flax import nnx

__all__ = ["VGG"]

# Convolutions in each of the five stages, whose channels are 64, 128, 256, 512 and 512.
_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nnx.Module):
    """VGG with 16 or 19 layers (configurations D and E of the paper).

    Its parameters are ``conv1_1``, ``conv1_2``, ``conv2_1`` and so on to ``conv5_3`` (``conv5_4``), ``fc1``, ``fc2`` and
    ``fc3``, each with ``kernel`` and ``bias``.

    Args:
      depth: 16 or 19.
      classes: number of classes.
      image_size: height and width of the images in pixels, a multiple of 32.
      width: the factor on the channels of the convolutions, rounded down.
      hidden: outputs of ``fc1`` and ``fc2``.
      dropout: rate of dropout after ``fc1`` and ``fc2``, in training mode.
      rngs: random numbers for the initial weights and for dropout.

    Raises:
      ValueError: ``depth`` is neither 16 nor 19, ``image_size`` is no positive multiple of 32, or ``width`` leaves no
        channel.

    Example:
      >>> images = jax.numpy.zeros((2, 32, 32, 3))
      >>> nnx.eval_shape(lambda: VGG(16, classes=10, image_size=32, hidden=512, rngs=nnx.Rngs(0))(images)).shape
      (2, 10)
    """

    def __init__(
        self,
        depth: int = 16,
        classes: int = 1000,
        image_size: int = 224,
        *,
        width: float = 1.0,
        hidden: int = 4096,
        dropout: float = 0.5,
        rngs: nnx.Rngs,
    ):
        if depth not in _STAGES:
            raise ValueError(f"depth must be 16 or 19, got {depth}")
        if image_size < 32 or image_size % 32:
            raise ValueError(f"image_size must be a positive multiple of 32, got {image_size}")
        if not int(_CHANNELS[0] * width):
            raise ValueError(f"width must leave at least one of {_CHANNELS[0]} channels, got {width}")
        self.image_size = image_size
        self.stages = tuple(tuple(f"conv{i}_{j + 1}" for j in range(n)) for i, n in enumerate(_STAGES[depth], 1))
        channels = 3
        for names, full in zip(self.stages, _CHANNELS, strict=True):
            for name in names:
                cin, channels = channels, int(full * width)
                init = nnx.initializers.he_normal()
                setattr(self, name, nnx.Conv(cin, channels, (3, 3), padding="SAME", kernel_init=init, rngs=rngs))
        self.fc1 = nnx.Linear((image_size // 32) ** 2 * channels, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, hidden, rngs=rngs)
        self.fc3 = nnx.Linear(hidden, classes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, image_size, image_size, 3]``.

        Raises:
          ValueError: the images have another shape.
        """
        if x.ndim != 4 or x.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(f"images must be [n, {self.image_size}, {self.image_size}, 3], got {x.shape}")
        for names in self.stages:
            for name in names:
                x = nnx.relu(getattr(self, name)(x))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        # Channels first, the order in which PyTorch's dense layer takes its inputs: its weights fit as they are.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        x = self.dropout(nnx.relu(self.fc1(x)))
        x = self.dropout(nnx.relu(self.fc2(x)))
        return self.fc3(x)
