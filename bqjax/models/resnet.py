"""ResNets for CIFAR (He et al. 2016, section 4.2), and their weights from PyTorch.

A network of depth ``6 n + 2`` has a convolution of 16 channels, three stages of ``n`` blocks with 16, 32 and 64
channels, and a dense layer. Shortcuts have no parameters (the paper's option A): where a stage halves the image, they
take every second pixel and zeros for the new channels. ResNet-20 has 269,722 parameters, ResNet-56 853,018.

As in PyTorch, 3x3 convolutions pad one pixel on every side, also those of stride 2, for which "SAME" would pad on one
side only and shift the image.

References:
  He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016. https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.adapters.safetensors import read_weights
from bqjax.adapters.torch import load_torch
from bqjax.models.activation import relu_once

__all__ = ["CifarResNet", "ResidualBlock", "load_resnet", "resnet_inputs"]

# Of ImageNet, and not of CIFAR: what the published weights were trained with. Of RGB values in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

_Conv3x3 = partial(nnx.Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)), use_bias=False, kernel_init=nnx.initializers.he_normal())
# PyTorch's momentum of 0.1 is the weight of the new value, here it is that of the old one.
_BatchNorm = partial(nnx.BatchNorm, epsilon=1e-5, momentum=0.9)


class ResidualBlock(nnx.Module):
    """Residual block, ``relu(x' + bn2(conv2(relu(bn1(conv1(x))))))`` with a shortcut ``x'`` that has no parameters.

    Args:
      cin: channels of the input.
      cout: channels of the output, at least ``cin``; zeros are added on both sides of the shortcut's channels.
      stride: 1, or 2 to halve the image.
      rngs: random numbers for the initial weights.

    Raises:
      ValueError: ``cout - cin`` is negative or odd.

    Example:
      >>> nnx.eval_shape(lambda: ResidualBlock(16, 32, stride=2, rngs=nnx.Rngs(0))(jnp.zeros((1, 8, 8, 16)))).shape
      (1, 4, 4, 32)
    """

    def __init__(self, cin: int, cout: int, stride: int = 1, *, rngs: nnx.Rngs):
        if cout < cin or (cout - cin) % 2:
            raise ValueError(f"the shortcut adds as many channels on both sides: cin={cin} and cout={cout} do not fit")
        self.stride = stride
        self.added = (cout - cin) // 2
        self.conv1 = _Conv3x3(cin, cout, strides=(stride, stride), rngs=rngs)
        self.bn1 = _BatchNorm(cout, rngs=rngs)
        self.conv2 = _Conv3x3(cout, cout, rngs=rngs)
        self.bn2 = _BatchNorm(cout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, cin] -> [n, ceil(h / stride), ceil(w / stride), cout]``."""
        relu = _relu(self)
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x[:, :: self.stride, :: self.stride, :]
        if self.added:
            shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (self.added, self.added)))
        return relu(shortcut + y)


def _relu(block: ResidualBlock) -> Callable[[jax.Array], jax.Array]:
    """Relu of inputs of a block: computed once in float training, where it is a third faster on CPUs.

    Evaluation takes no gradients, and where layers are quantized it is slower: they divide their inputs anyway.
    """
    plain = block.bn1.use_running_average or type(block.conv1) is not nnx.Conv
    return nnx.relu if plain else relu_once


class CifarResNet(nnx.Module):
    """A ResNet for images of 32 x 32 (or another size).

    Its parameters are ``conv1/kernel``, ``bn1/scale``, ``bn1/bias``, ``layer1/0/conv1/kernel`` and so on, and
    ``linear/kernel``, ``linear/bias``.

    Args:
      depth: layers with weights, ``6 n + 2``: 20, 32, 44, 56, 110.
      classes: number of classes.
      rngs: random numbers for the initial weights.

    Raises:
      ValueError: ``depth`` is not ``6 n + 2`` with ``n`` at least 1.

    Example:
      >>> nnx.eval_shape(lambda: CifarResNet(8, rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3)))).shape
      (2, 10)
    """

    def __init__(self, depth: int = 20, classes: int = 10, *, rngs: nnx.Rngs):
        n, remainder = divmod(depth - 2, 6)
        if n < 1 or remainder:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ..., 56), got {depth}")
        self.depth = depth
        self.conv1 = _Conv3x3(3, 16, rngs=rngs)
        self.bn1 = _BatchNorm(16, rngs=rngs)
        self.layer1 = _stage(16, 16, n, stride=1, rngs=rngs)
        self.layer2 = _stage(16, 32, n, stride=2, rngs=rngs)
        self.layer3 = _stage(32, 64, n, stride=2, rngs=rngs)
        self.linear = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, h, w, 3]`` as :func:`resnet_inputs` makes them."""
        x = _relu(self.layer1[0])(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                x = block(x)
        return self.linear(x.mean(axis=(1, 2)))


def _stage(cin: int, cout: int, n: int, *, stride: int, rngs: nnx.Rngs) -> nnx.List:
    first = ResidualBlock(cin, cout, stride, rngs=rngs)
    return nnx.List([first, *(ResidualBlock(cout, cout, rngs=rngs) for _ in range(n - 1))])


def load_resnet(path: str | os.PathLike[str]) -> CifarResNet:
    """The network of a safetensors file in PyTorch's names and layout, in evaluation mode.

    Depth and number of classes are those of the file. ``nnx.view(model, use_running_average=False)`` gives the model in
    training mode, where BatchNorm uses and updates the statistics of its batches.

    Args:
      path: a file with tensors named as in https://github.com/akamaster/pytorch_resnet_cifar10.

    Raises:
      ValueError: the file is missing or damaged, or its tensors do not fit; the message lists those.
    """
    tensors = read_weights(path)
    blocks = {match[1] for name in tensors if (match := re.match(r"layer1\.(\d+)\.", name))}
    head = tensors.get("linear.bias", np.zeros(10))
    # Shapes only: weights that are about to be replaced need no drawing. What does not fit is found by load_torch.
    depth, classes = 6 * max(len(blocks), 1) + 2, head.size
    model = nnx.eval_shape(lambda: CifarResNet(depth, classes, rngs=nnx.Rngs(0)))
    return nnx.view(load_torch(model, tensors, source=str(path)), use_running_average=True)


def resnet_inputs(images: np.ndarray) -> np.ndarray:
    """What the published weights were trained on: ``(image / 255 - mean) / std`` with ImageNet's mean and deviation.

    Args:
      images: ``[n, h, w, 3]`` uint8, RGB.

    Returns:
      ``[n, h, w, 3]`` float32.

    Raises:
      ValueError: ``images`` have another dtype or shape. Floats are refused because their range cannot be told.

    Example:
      >>> print(resnet_inputs(np.zeros((1, 1, 1, 3), np.uint8)).round(3))
      [[[[-2.118 -2.036 -1.804]]]]
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [n, h, w, 3] uint8, got {images.dtype} {images.shape}")
    return (images.astype(np.float32) / np.float32(255) - MEAN) / STD
