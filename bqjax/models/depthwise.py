"""Depthwise convolution, in the form that is fast where it runs.

Each channel has a filter of its own. On a CPU, XLA runs this as a grouped convolution with one channel a group, which is
slow: the product of the shifted image and one tap of the filter, summed over the taps, is many times faster there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

__all__ = ["DepthwiseConv", "Padding", "depthwise_conv"]

Padding = str | tuple[tuple[int, int], tuple[int, int]]
Implementation = Literal["shifted", "grouped"]


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Depthwise convolution: convolves each channel with its own filter.

    ``y[n, i, j, c] = sum_{a, b} x[n, i s_h + a - p_h, j s_w + b - p_w, c] kernel[a, b, 0, c]``, zero outside of ``x``.

    Args:
      x: ``[n, h, w, c]``.
      kernel: ``[kh, kw, 1, c]``, the layout of a grouped convolution with ``c`` groups.
      strides: steps in pixels, ``(s_h, s_w)``.
      padding: ``"SAME"``, ``"VALID"``, or pixels ``((top, bottom), (left, right))``.
      implementation: ``"shifted"`` sums products of the shifted image, ``"grouped"`` is XLA's grouped convolution. The
        two agree up to rounding. ``None`` takes "shifted" on a CPU and "grouped" elsewhere, by
        ``jax.default_backend()`` at the time of tracing: name it where a function is traced for another backend.

    Returns:
      ``[n, h', w', c]`` of the common dtype of ``x`` and ``kernel``.

    Raises:
      ValueError: the shapes do not fit, the padded image is smaller than the filter, a stride is below 1, or
        ``padding`` or ``implementation`` is unknown.

    Example:
      >>> x, kernel = jnp.arange(9.0).reshape(1, 3, 3, 1), jnp.ones((2, 2, 1, 1))
      >>> depthwise_conv(x, kernel, padding="VALID")[0, :, :, 0].tolist()
      [[8.0, 12.0], [20.0, 24.0]]
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2] != 1 or kernel.shape[3] != x.shape[3]:
        raise ValueError(f"x must be [n, h, w, c] and the kernel [kh, kw, 1, c], got {x.shape} and {kernel.shape}")
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"strides must be two integers of at least 1, got {strides}")
    pads = _pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padded = [size + low + high for size, (low, high) in zip(x.shape[1:3], pads, strict=True)]
    if any(size < k for size, k in zip(padded, kernel.shape[:2], strict=True)):
        raise ValueError(f"a filter of {kernel.shape[:2]} does not fit into an image of {tuple(padded)} with its padding")
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if implementation is None:
        implementation = "shifted" if jax.default_backend() == "cpu" else "grouped"
    if implementation == "shifted":
        return _shifted(x, kernel, strides, pads)
    if implementation == "grouped":
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[3]
        )
    raise ValueError(f'implementation must be "shifted" or "grouped", got {implementation!r}')


def _pads(image: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Padding) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f'padding must be "SAME", "VALID" or ((top, bottom), (left, right)), got {padding!r}')
        return tuple(lax.padtype_to_pads(image, window, strides, padding.upper()))
    pads = tuple(tuple(pair) for pair in padding)
    if [len(pair) for pair in pads] != [2, 2]:
        raise ValueError(f'padding must be "SAME", "VALID" or ((top, bottom), (left, right)), got {padding!r}')
    return pads  # type: ignore[return-value]


def _shifted(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: tuple[tuple[int, int], ...]) -> jax.Array:
    n, _, _, channels = x.shape
    kh, kw = kernel.shape[:2]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))
    height, width = ((x.shape[1] - kh) // strides[0] + 1, (x.shape[2] - kw) // strides[1] + 1)
    # Half precision is summed in float32, as a convolution sums it.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((n, height, width, channels), wide)
    for a in range(kh):
        for b in range(kw):
            limits = (n, a + (height - 1) * strides[0] + 1, b + (width - 1) * strides[1] + 1, channels)
            tap = lax.slice(x, (0, a, b, 0), limits, (1, *strides, 1))
            total = total + tap.astype(wide) * kernel[a, b].reshape(1, 1, 1, channels).astype(wide)
    return total.astype(x.dtype)


class DepthwiseConv(nnx.Module):
    """A layer around :func:`depthwise_conv`, with one ``kernel`` of shape ``[kh, kw, 1, channels]`` and no bias.

    Args:
      channels: channels of input and output.
      kernel_size: ``(kh, kw)``.
      strides: steps in pixels.
      padding: as in :func:`depthwise_conv`.
      implementation: as in :func:`depthwise_conv`.
      rngs: random numbers for the initial weights.

    Example:
      >>> layer = DepthwiseConv(8, strides=(2, 2), rngs=nnx.Rngs(0))
      >>> layer(jnp.zeros((1, 5, 5, 8))).shape
      (1, 3, 3, 8)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        padding: Padding = "SAME",
        *,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        self.strides = strides
        self.padding = padding
        self.implementation = implementation
        # The fan-in of [kh, kw, 1, channels] is kh * kw: one channel goes into each output.
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (*kernel_size, 1, channels)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, h, w, channels] -> [n, h', w', channels]``."""
        return depthwise_conv(x, self.kernel[...], self.strides, self.padding, implementation=self.implementation)
