"""MobileNetV1 and MobileNetV2: depthwise convolutions of 3x3 between pointwise ones of 1x1.

With 1000 classes and a width of 1, MobileNetV1 has 4,231,976 parameters and MobileNetV2 3,504,872, as published. Padding
(one pixel on every side) and BatchNorm (epsilon 1e-5) follow PyTorch's models; every activation is ``min(max(x, 0), 6)``.

References:
  Howard et al. MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications. 2017.
  https://arxiv.org/abs/1704.04861
  Sandler et al. MobileNetV2: Inverted Residuals and Linear Bottlenecks. CVPR 2018. https://arxiv.org/abs/1801.04381
"""

from __future__ import annotations

from functools import partial

import jax
from flax import nnx

from bqjax.models.depthwise import DepthwiseConv

__all__ = ["InvertedResidual", "MobileNetV1", "MobileNetV2", "SeparableBlock"]

_PADDING = ((1, 1), (1, 1))
_Conv = partial(nnx.Conv, use_bias=False, kernel_init=nnx.initializers.he_normal())
_Conv3x3 = partial(_Conv, kernel_size=(3, 3), padding=_PADDING)
_Conv1x1 = partial(_Conv, kernel_size=(1, 1))
_BatchNorm = partial(nnx.BatchNorm, epsilon=1e-5, momentum=0.9)

# (channels, stride) of each block.
_V1_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
# (expansion, channels, blocks, stride of the first block) of each stage.
_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class SeparableBlock(nnx.Module):
    """Depthwise separable convolution, ``relu6(bn2(pointwise(relu6(bn1(depthwise(x))))))``, the block of MobileNetV1.

    Args:
      cin: channels of the input.
      cout: channels of the output.
      stride: of the depthwise convolution.
      rngs: random numbers for the initial weights.
    """

    def __init__(self, cin: int, cout: int, stride: int, *, rngs: nnx.Rngs):
        self.depthwise = DepthwiseConv(cin, strides=(stride, stride), padding=_PADDING, rngs=rngs)
        self.bn1 = _BatchNorm(cin, rngs=rngs)
        self.pointwise = _Conv1x1(cin, cout, rngs=rngs)
        self.bn2 = _BatchNorm(cout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, cin] -> [n, ceil(h / stride), ceil(w / stride), cout]``."""
        x = nnx.relu6(self.bn1(self.depthwise(x)))
        return nnx.relu6(self.bn2(self.pointwise(x)))


class MobileNetV1(nnx.Module):
    """MobileNetV1 for ImageNet.

    Its parameters are ``conv1``, ``bn1``, ``blocks/0/depthwise``, ``blocks/0/bn1``, ``blocks/0/pointwise``,
    ``blocks/0/bn2`` and so on, and ``linear``.

    Args:
      classes: number of classes.
      width: the factor on all numbers of channels; each is rounded down, to 8 at least.
      rngs: random numbers for the initial weights.

    Raises:
      ValueError: ``width`` is not positive.

    Example:
      >>> model = nnx.eval_shape(lambda: MobileNetV1(classes=5, width=0.25, rngs=nnx.Rngs(0)))  # shapes only
      >>> model.linear.kernel.shape
      (256, 5)
    """

    def __init__(self, classes: int = 1000, width: float = 1.0, *, rngs: nnx.Rngs):
        _check_width(width)
        channels = max(8, int(32 * width))
        self.conv1 = _Conv3x3(3, channels, strides=(2, 2), rngs=rngs)
        self.bn1 = _BatchNorm(channels, rngs=rngs)
        blocks = []
        for full, stride in _V1_BLOCKS:
            cin, channels = channels, max(8, int(full * width))
            blocks.append(SeparableBlock(cin, channels, stride, rngs=rngs))
        self.blocks = nnx.List(blocks)
        self.linear = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, h, w, 3]``."""
        x = nnx.relu6(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return self.linear(x.mean(axis=(1, 2)))


class InvertedResidual(nnx.Module):
    """Inverted residual, ``x + bn3(project(relu6(bn2(depthwise(relu6(bn1(expand(x))))))))``, the block of MobileNetV2.

    ``x`` is added where the block changes neither the size of the image nor the number of channels.

    Args:
      cin: channels of the input.
      cout: channels of the output.
      stride: of the depthwise convolution.
      expansion: channels between ``expand`` and ``project``, as a multiple of ``cin``. With 1 there is no ``expand``.
      rngs: random numbers for the initial weights.
    """

    def __init__(self, cin: int, cout: int, stride: int, expansion: int, *, rngs: nnx.Rngs):
        hidden = cin * expansion
        self.expands = expansion != 1
        self.adds = stride == 1 and cin == cout
        if self.expands:
            self.expand = _Conv1x1(cin, hidden, rngs=rngs)
            self.bn1 = _BatchNorm(hidden, rngs=rngs)
        self.depthwise = DepthwiseConv(hidden, strides=(stride, stride), padding=_PADDING, rngs=rngs)
        self.bn2 = _BatchNorm(hidden, rngs=rngs)
        self.project = _Conv1x1(hidden, cout, rngs=rngs)
        self.bn3 = _BatchNorm(cout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, cin] -> [n, ceil(h / stride), ceil(w / stride), cout]``."""
        y = nnx.relu6(self.bn1(self.expand(x))) if self.expands else x
        y = nnx.relu6(self.bn2(self.depthwise(y)))
        y = self.bn3(self.project(y))
        return x + y if self.adds else y


class MobileNetV2(nnx.Module):
    """MobileNetV2 for ImageNet, or for small images as those of CIFAR.

    Its parameters are ``conv1``, ``bn1``, ``blocks/0/depthwise`` and so on to ``blocks/16/bn3``, ``conv2``, ``bn2`` and
    ``linear``.

    Args:
      classes: number of classes.
      width: the factor on all numbers of channels, which are rounded to multiples of 8.
      small_images: the form for images of 32 x 32: the first convolution and the second stage have a stride of 1
        instead of 2, so that the last stages see 4 x 4 pixels and not 1. The parameters are the same.
      dropout: rate of dropout in front of the dense layer, in training mode.
      rngs: random numbers for the initial weights and for dropout.

    Raises:
      ValueError: ``width`` is not positive.

    Example:
      >>> model = nnx.eval_shape(lambda: MobileNetV2(classes=10, small_images=True, rngs=nnx.Rngs(0)))  # shapes only
      >>> model.linear.kernel.shape
      (1280, 10)
    """

    def __init__(
        self,
        classes: int = 1000,
        width: float = 1.0,
        *,
        small_images: bool = False,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        _check_width(width)
        stride = 1 if small_images else 2
        channels = _multiple_of_8(32 * width)
        self.conv1 = _Conv3x3(3, channels, strides=(stride, stride), rngs=rngs)
        self.bn1 = _BatchNorm(channels, rngs=rngs)
        blocks = []
        for i, (expansion, full, n, first) in enumerate(_V2_STAGES):
            for j in range(n):
                stride = first if j == 0 and not (small_images and i == 1) else 1
                cin, channels = channels, _multiple_of_8(full * width)
                blocks.append(InvertedResidual(cin, channels, stride, expansion, rngs=rngs))
        self.blocks = nnx.List(blocks)
        last = _multiple_of_8(1280 * max(1.0, width))
        self.conv2 = _Conv1x1(channels, last, rngs=rngs)
        self.bn2 = _BatchNorm(last, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.linear = nnx.Linear(last, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, h, w, 3]``."""
        x = nnx.relu6(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        x = nnx.relu6(self.bn2(self.conv2(x)))
        return self.linear(self.dropout(x.mean(axis=(1, 2))))


def _check_width(width: float) -> None:
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8 and not more than 10 % below ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
