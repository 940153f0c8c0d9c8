"""VGG16 and VGG19: stacks of 3x3 convolutions and three dense layers, and their weights from torchvision and Keras.

With 1000 classes and images of 224 x 224 they have 138,357,544 and 143,667,240 parameters, most of them
(123,642,856) in the dense layers.

References:
  Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015.
  https://arxiv.org/abs/1409.1556
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_load
from bqjax.adapters.safetensors import read_weights
from bqjax.adapters.torch import torch_name, torch_to_nnx_layout

__all__ = ["VGG", "load_vgg"]

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


def load_vgg(path: str | os.PathLike[str]) -> VGG:
    """The network of a safetensors file in torchvision's or in Keras's names and layouts, in evaluation mode.

    torchvision's ``vgg16`` and ``vgg19`` (without BatchNorm) count layers, ``features.0.weight`` to ``classifier.6.bias``.
    Keras's have ``block1_conv1/kernel`` to ``predictions/bias``, also with ``:0`` at the end; their first dense layer takes
    channels last, and its rows are put into the order of channels first. Sizes and depth are those of the file.

    Args:
      path: the file.

    Raises:
      ValueError: the file is missing or damaged, has neither kind of names, or its tensors do not fit; the message lists
        those.
    """
    tensors = {name.removesuffix(":0"): tensor for name, tensor in read_weights(path).items()}
    keras = "block1_conv1/kernel" in tensors
    first, fc1, fc3 = (
        ("block1_conv1/bias", "fc1/kernel", "predictions/bias")
        if keras
        else ("features.0.bias", "classifier.0.weight", "classifier.6.bias")
    )
    if not {first, fc1, fc3} <= set(tensors):
        raise ValueError(
            f"{path} is no VGG of torchvision or Keras: it lacks one of {first}, {fc1}, {fc3}; it has "
            f"{', '.join(sorted(tensors)[:6]) or 'none'}"
        )
    convolutions = sum(bool(re.fullmatch(r"features\.\d+\.weight|block\d_conv\d/kernel", name)) for name in tensors)
    if tensors[fc1].ndim != 2:
        raise ValueError(f"{path}: {fc1} must have two axes, got shape {tensors[fc1].shape}")
    hidden, inputs = tensors[fc1].shape[:: -1 if keras else 1]
    width = tensors[first].size / _CHANNELS[0]
    # The image's size from the inputs of the first dense layer; where that is no square, what does not fit is found below.
    image_size = 32 * max(1, math.isqrt(inputs // max(1, int(_CHANNELS[-1] * width))))
    depth = convolutions + 3
    if depth not in _STAGES:
        raise ValueError(f"{path} has {convolutions} convolutions: VGG16 has 13 and VGG19 has 16")
    classes = tensors[fc3].size
    model = nnx.eval_shape(lambda: VGG(depth, classes, image_size, width=width, hidden=hidden, rngs=nnx.Rngs(0)))
    model.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))  # its key has a value, unlike what is loaded
    names = _keras_names(model) if keras else _torchvision_names(model)

    def name_of(variable: str) -> str:
        layer, kind = variable.split("/")
        return f"{names[layer]}/{kind}" if keras else torch_name(f"{names[layer]}/{kind}")

    def convert(variable: str, tensor: np.ndarray) -> np.ndarray:
        if not keras:
            return torch_to_nnx_layout(tensor)
        if variable != "fc1/kernel":
            return tensor
        side = image_size // 32
        return tensor.reshape(side, side, -1, tensor.shape[1]).transpose(2, 0, 1, 3).reshape(tensor.shape)

    loaded = nnx_load(model, tensors, name_of, convert, source=str(path))
    return nnx.view(loaded, deterministic=True)


def _torchvision_names(model: VGG) -> Mapping[str, str]:
    names, place = {"fc1": "classifier/0", "fc2": "classifier/3", "fc3": "classifier/6"}, 0
    for stage in model.stages:
        for name in stage:
            names[name] = f"features/{place}"
            place += 2  # a relu follows each convolution
        place += 1  # and a pooling each stage
    return names


def _keras_names(model: VGG) -> Mapping[str, str]:
    names = {"fc1": "fc1", "fc2": "fc2", "fc3": "predictions"}
    return names | {name: f"block{name[4]}_conv{name[6]}" for stage in model.stages for name in stage}
