"""SqueezeNet 1.1 for ImageNet (Iandola et al. 2016), and the published weights of Caffe.

Eight fire modules, each a 1x1 convolution to few channels and, side by side, 1x1 and 3x3 convolutions from there to many; the
classes come from a 1x1 convolution and a mean over the image. There is no dense layer and no normalisation:
1,235,496 parameters, of which 513,000 are those of the last convolution.

References:
  Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer. SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model
  size. 2016. https://arxiv.org/abs/1602.07360. Version 1.1 is the authors' later one, of 2.4 times less computing.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_load
from bqjax.adapters.safetensors import read_weights

__all__ = ["IMAGE_SIZE", "Fire", "SqueezeNet", "load_squeezenet", "squeezenet_inputs"]

IMAGE_SIZE = 227
# Of blue, green and red, in that order, as Caffe has them.
_MEAN = np.array([104.0, 117.0, 123.0], np.float32)

# Channels of the squeezing convolution and of each of the two that follow, by module.
_FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
_POOLED_BEFORE = (2, 4, 6)


class Fire(nnx.Module):
    """Fire module: ``[n, h, w, cin] -> [n, h, w, 2 * expand]``.

    Args:
      cin: channels of the input.
      squeeze: channels between.
      expand: channels of the 1x1 convolution, and of the 3x3 one.
      rngs: random numbers for the initial weights.
    """

    def __init__(self, cin: int, squeeze: int, expand: int, *, rngs: nnx.Rngs):
        self.squeeze1x1 = nnx.Conv(cin, squeeze, (1, 1), rngs=rngs)
        self.expand1x1 = nnx.Conv(squeeze, expand, (1, 1), rngs=rngs)
        self.expand3x3 = nnx.Conv(squeeze, expand, (3, 3), padding="SAME", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.squeeze1x1(x))
        return nnx.relu(jnp.concatenate([self.expand1x1(x), self.expand3x3(x)], axis=-1))


class SqueezeNet(nnx.Module):
    """SqueezeNet 1.1.

    Its parameters are ``conv1``, ``fire2/squeeze1x1``, ``fire2/expand1x1``, ``fire2/expand3x3`` and so on to ``fire9``, and
    ``conv10``, each with ``kernel`` and ``bias``.

    Args:
      classes: number of classes.
      rngs: random numbers for the initial weights.

    Example:
      >>> nnx.eval_shape(lambda: SqueezeNet(rngs=nnx.Rngs(0))(jnp.zeros((2, 227, 227, 3)))).shape
      (2, 1000)
    """

    def __init__(self, classes: int = 1000, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 64, (3, 3), strides=(2, 2), padding="VALID", rngs=rngs)
        cin = 64
        for number, (squeeze, expand) in _FIRES.items():
            setattr(self, f"fire{number}", Fire(cin, squeeze, expand, rngs=rngs))
            cin = 2 * expand
        self.conv10 = nnx.Conv(cin, classes, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, h, w, 3]`` as :func:`squeezenet_inputs` makes them."""
        x = nnx.relu(self.conv1(x))
        for number in _FIRES:
            if number in _POOLED_BEFORE:
                x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")
            x = getattr(self, f"fire{number}")(x)
        return nnx.relu(self.conv10(x)).mean(axis=(1, 2))


def load_squeezenet(path: str | os.PathLike[str]) -> SqueezeNet:
    """The network with the weights of a safetensors file, as float32.

    Args:
      path: a file with the tensors ``conv1/kernel [3, 3, 3, 64]``, ``conv1/bias`` and so on, named as the parameters.

    Raises:
      ValueError: the file is missing or damaged, or its tensors do not fit; the message lists those.
    """
    # Shapes only: weights that are about to be replaced need no drawing.
    model = nnx.eval_shape(lambda: SqueezeNet(rngs=nnx.Rngs(0)))
    return nnx_load(model, read_weights(path), str, source=str(path))


def squeezenet_inputs(images: np.ndarray) -> np.ndarray:
    """What the published weights were trained on: blue, green and red less their means over ImageNet.

    Args:
      images: ``[n, h, w, 3]`` uint8, RGB.

    Returns:
      ``[n, h, w, 3]`` float32.

    Raises:
      ValueError: the images are something else.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [n, h, w, 3] uint8, got {images.dtype} {images.shape}")
    return images[..., ::-1].astype(np.float32) - _MEAN
