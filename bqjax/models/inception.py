"""InceptionV1 (GoogLeNet) and InceptionV2 for ImageNet, with BatchNorm after each convolution.

InceptionV1 is torchvision's GoogLeNet without its auxiliary heads: 6,624,904 parameters at 1000 classes, and 3x3
convolutions where the paper has 5x5 ones, as in all published weights with BatchNorm. InceptionV2 is that of
TensorFlow-Slim, whose first convolution is separable and has a bias in place of BatchNorm: 11,188,224 parameters. Slim's
own count, 10,173,112 without the classifier, has means and variances but no scales.

References:
  Szegedy et al. Going Deeper with Convolutions. CVPR 2015. https://arxiv.org/abs/1409.4842
  Ioffe, Szegedy. Batch Normalization. ICML 2015. https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bqjax.adapters.flax import nnx_load
from bqjax.adapters.safetensors import read_weights
from bqjax.adapters.torch import torch_ignored, torch_name, torch_to_nnx_layout

__all__ = ["InceptionV1", "InceptionV2", "load_googlenet"]


class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNorm (epsilon 1e-3), relu; its parameters are ``conv/kernel``, ``bn/scale``, ``bn/bias``.

    The same number of pixels is padded on both sides, as in PyTorch.
    """

    def __init__(self, cin: int, cout: int, size: int, stride: int = 1, *, same: bool = False, rngs: nnx.Rngs):
        padding: Any = "SAME" if same else ((size // 2, size // 2),) * 2
        init = nnx.initializers.he_normal()
        self.conv = nnx.Conv(
            cin, cout, (size, size), (stride, stride), padding=padding, use_bias=False, kernel_init=init, rngs=rngs
        )
        self.bn = nnx.BatchNorm(cout, epsilon=1e-3, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, cin] -> [n, ceil(h / stride), ceil(w / stride), cout]``."""
        return nnx.relu(self.bn(self.conv(x)))


class Inception(nnx.Module):
    """Branches over one input, side by side in the output's channels.

    Its parameters are ``branch1/0/conv/kernel`` and so on.

    Args:
      cin: channels of the input.
      branches: of each branch the convolutions, ``(channels, kernel size, stride)``.
      pool: ``"max"`` or ``"avg"``, over 3 x 3 in front of the last branch, which may have no convolutions.
      stride: of the pooling.
      rngs: random numbers for the initial weights.
    """

    def __init__(self, cin: int, branches: Sequence[Sequence[tuple[int, int, int]]], pool: str, stride: int = 1, *, rngs: nnx.Rngs):
        self.pool, self.stride, self.n = pool, stride, len(branches)
        self.channels = 0
        for i, branch in enumerate(branches, 1):
            layers, channels = [], cin
            for cout, size, step in branch:
                layers.append(ConvNorm(channels, cout, size, step, same=step > 1, rngs=rngs))
                channels = cout
            setattr(self, f"branch{i}", nnx.List(layers))
            self.channels += channels

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, cin] -> [n, ceil(h / stride), ceil(w / stride), channels]``."""
        outs = []
        for i in range(1, self.n + 1):
            y = x
            if i == self.n:
                strides = (self.stride, self.stride)
                if self.pool == "max":
                    y = nnx.max_pool(y, (3, 3), strides=strides, padding="SAME")
                else:
                    y = nnx.avg_pool(y, (3, 3), strides=strides, padding="SAME", count_include_pad=False)
            for layer in getattr(self, f"branch{i}"):
                y = layer(y)
            outs.append(y)
        return jnp.concatenate(outs, axis=3)


def _ceil_pool(x: jax.Array, size: int) -> jax.Array:
    """Maximum over ``size`` x ``size`` pixels in steps of 2, the last window reaching over the edge (PyTorch's ceil mode)."""
    padding = [(0, max(0, -(-(n - size) // 2) * 2 + size - n)) for n in x.shape[1:3]]
    return nnx.max_pool(x, (size, size), strides=(2, 2), padding=padding)


def _scaled(width: float, *channels: int) -> list[int]:
    return [max(1, int(c * width)) for c in channels]


# Outputs of the branches: 1x1; 1x1 before 3x3; 1x1 before the second 3x3; 1x1 behind the pooling.
_V1 = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


class InceptionV1(nnx.Module):
    """GoogLeNet without auxiliary heads.

    Its parameters are ``conv1``, ``conv2``, ``conv3``, the branches of ``inception3a`` to ``inception5b``, each convolution
    with ``conv/kernel``, ``bn/scale`` and ``bn/bias``, and ``fc/kernel``, ``fc/bias``.

    Args:
      classes: number of classes.
      width: the factor on all channels, rounded down, at least one.
      dropout: rate before the dense layer, in training mode.
      rngs: random numbers for the initial weights and for dropout.

    Raises:
      ValueError: ``width`` is not positive.
    """

    def __init__(self, classes: int = 1000, *, width: float = 1.0, dropout: float = 0.2, rngs: nnx.Rngs):
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        first, second = _scaled(width, 64, 192)
        self.conv1 = ConvNorm(3, first, 7, 2, rngs=rngs)
        self.conv2 = ConvNorm(first, first, 1, rngs=rngs)
        self.conv3 = ConvNorm(first, second, 3, rngs=rngs)
        channels = second
        for name, outs in _V1.items():
            one, before3, three, before_other, other, pooled = _scaled(width, *outs)
            branches = (((one, 1, 1),), ((before3, 1, 1), (three, 3, 1)), ((before_other, 1, 1), (other, 3, 1)), ((pooled, 1, 1),))
            setattr(self, name, Inception(channels, branches, "max", rngs=rngs))
            channels = getattr(self, name).channels
        self.fc = nnx.Linear(channels, classes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, h, w, 3]``, 224 x 224 in the paper."""
        x = _ceil_pool(self.conv1(x), 3)
        x = _ceil_pool(self.conv3(self.conv2(x)), 3)
        for name in _V1:
            x = getattr(self, name)(x)
            if name in ("inception3b", "inception4e"):
                x = _ceil_pool(x, 3 if name == "inception3b" else 2)
        return self.fc(self.dropout(x.mean(axis=(1, 2))))


_Branch = tuple[tuple[int, int, int], ...]


def _v2_block(one: int, before3: int, three: int, before_double: int, double: int, pooled: int) -> tuple[_Branch, ...]:
    return (
        ((one, 1, 1),),
        ((before3, 1, 1), (three, 3, 1)),
        ((before_double, 1, 1), (double, 3, 1), (double, 3, 1)),
        ((pooled, 1, 1),),
    )


def _v2_reduction(before3: int, three: int, before_double: int, double: int) -> tuple[_Branch, ...]:
    return ((before3, 1, 1), (three, 3, 2)), ((before_double, 1, 1), (double, 3, 1), (double, 3, 2)), ()


_V2: dict[str, tuple[tuple[_Branch, ...], str]] = {
    "mixed3b": (_v2_block(64, 64, 64, 64, 96, 32), "avg"),
    "mixed3c": (_v2_block(64, 64, 96, 64, 96, 64), "avg"),
    "mixed4a": (_v2_reduction(128, 160, 64, 96), "max"),
    "mixed4b": (_v2_block(224, 64, 96, 96, 128, 128), "avg"),
    "mixed4c": (_v2_block(192, 96, 128, 96, 128, 128), "avg"),
    "mixed4d": (_v2_block(160, 128, 160, 128, 160, 96), "avg"),
    "mixed4e": (_v2_block(96, 128, 192, 160, 192, 96), "avg"),
    "mixed5a": (_v2_reduction(128, 192, 192, 256), "max"),
    "mixed5b": (_v2_block(352, 192, 320, 160, 224, 128), "avg"),
    "mixed5c": (_v2_block(352, 192, 320, 192, 224, 128), "max"),
}


class InceptionV2(nnx.Module):
    """Inception with BatchNorm and two 3x3 convolutions in place of a 5x5 one, as TensorFlow-Slim has it.

    Its parameters are ``depthwise/kernel`` (8 maps for each colour), ``pointwise/kernel`` and ``pointwise/bias``, ``conv2``,
    ``conv3``, the branches of ``mixed3b`` to ``mixed5c``, each convolution with ``conv/kernel``, ``bn/scale`` and ``bn/bias``, and
    ``fc/kernel``, ``fc/bias``.

    Args:
      classes: number of classes.
      dropout: rate before the dense layer, in training mode.
      rngs: random numbers for the initial weights and for dropout.
    """

    def __init__(self, classes: int = 1000, *, dropout: float = 0.2, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(3, 24, (7, 7), (2, 2), feature_group_count=3, use_bias=False, rngs=rngs)
        self.pointwise = nnx.Conv(24, 64, (1, 1), kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.conv2 = ConvNorm(64, 64, 1, rngs=rngs)
        self.conv3 = ConvNorm(64, 192, 3, rngs=rngs)
        channels = 192
        for name, (branches, pool) in _V2.items():
            stride = 1 if branches[-1] else 2
            setattr(self, name, Inception(channels, branches, pool, stride, rngs=rngs))
            channels = getattr(self, name).channels
        self.fc = nnx.Linear(channels, classes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, h, w, 3]``, 224 x 224 in the paper."""
        x = nnx.relu(self.pointwise(self.depthwise(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = self.conv3(self.conv2(x))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for name in _V2:
            x = getattr(self, name)(x)
        return self.fc(self.dropout(x.mean(axis=(1, 2))))


def load_googlenet(path: str | os.PathLike[str], *, width: float = 1.0) -> InceptionV1:
    """InceptionV1 with the weights of a safetensors file in torchvision's names and layout, in evaluation mode.

    Auxiliary heads in the file are left out. torchvision's weights expect images that are normalised in its own way
    (``transform_input``), which is not part of this network.

    Args:
      path: a file of torchvision's ``googlenet`` state dict. The number of classes is the file's.
      width: of the network.

    Raises:
      ValueError: the file is missing or damaged, or its tensors do not fit; the message lists those.
    """
    tensors = read_weights(path)
    head = tensors.get("fc.bias")
    classes = 1000 if head is None else head.size
    model = nnx.eval_shape(lambda: InceptionV1(classes, width=width, rngs=nnx.Rngs(0)))
    model.dropout = nnx.Dropout(0.2, rngs=nnx.Rngs(0))  # its key has a value, unlike what is loaded

    def name_of(variable: str) -> str:
        # A branch of one convolution is no list there, and the pooling takes the first place of the fourth.
        variable = re.sub(r"branch1/0/", "branch1/", variable)
        return torch_name(re.sub(r"branch4/0/", "branch4/1/", variable))

    def ignored(name: str) -> bool:
        return name.startswith(("aux1.", "aux2.")) or torch_ignored(name)

    loaded = nnx_load(model, tensors, name_of, lambda _, tensor: torch_to_nnx_layout(tensor), ignored=ignored, source=str(path))
    return nnx.view(loaded, use_running_average=True, deterministic=True)
