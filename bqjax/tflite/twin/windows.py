"""Windows over images, for integers and reals alike: padding, patches, depthwise sums, pooling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["Window", "depthwise", "patches", "pool_counts", "pool_max", "pool_sum", "window"]


class Window(NamedTuple):
    """Size, steps, dilation and padding ``((top, bottom), (left, right))`` of a window, in pixels."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]


def window(options: Mapping[str, Any], image: Sequence[int], size: Sequence[int]) -> Window:
    """The window of a convolution or pooling, from the operator's options and the input's ``(height, width)``."""
    strides = (options["stride_h"], options["stride_w"])
    dilation = (options.get("dilation_hfactor", 1), options.get("dilation_wfactor", 1))
    reach = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
    top, left = lax.padtype_to_pads(image, reach, strides, options["padding"])
    return Window(tuple(size), strides, dilation, (tuple(top), tuple(left)))  # type: ignore[arg-type]


def _taps(x: jax.Array, w: Window, fill: float) -> Iterator[jax.Array]:
    """The padded image as each of the window's pixels sees it, ``[n, h', w', c]``, row by row."""
    x = lax.pad(x, np.asarray(fill, x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in w.pads), (0, 0, 0)))
    n, height, width, channels = x.shape
    out = [(s - (k - 1) * d - 1) // t for s, k, d, t in zip((height, width), w.size, w.dilation, w.strides, strict=True)]
    for i in range(w.size[0]):
        for j in range(w.size[1]):
            start = (i * w.dilation[0], j * w.dilation[1])
            stop = tuple(a + o * t + 1 for a, o, t in zip(start, out, w.strides, strict=True))
            yield lax.slice(x, (0, *start, 0), (n, *stop, channels), (1, *w.strides, 1))


def patches(x: jax.Array, w: Window, fill: float) -> jax.Array:
    """``[n, h, w, c] -> [n, h', w', kh * kw * c]``: what the window covers, in the order of a filter ``[kh, kw, c]``."""
    taps = list(_taps(x, w, fill))
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


def depthwise(x: jax.Array, weights: jax.Array, w: Window, fill: float) -> jax.Array:
    """Depthwise convolution as shifted multiply-adds.

    Args:
      x: ``[n, h, w, c]``, cast to the weights' dtype after slicing, so that narrow integers are moved and wide ones added.
      weights: ``[kh, kw, c * multiplier]``; channel ``i`` of ``x`` meets outputs ``i * multiplier`` and following.
      w: the window.
      fill: value of the padding.

    Returns:
      ``[n, h', w', c * multiplier]`` of the weights' dtype.
    """
    multiplier = weights.shape[-1] // x.shape[-1]
    if multiplier > 1:
        x = jnp.repeat(x, multiplier, axis=-1)
    taps = weights.reshape(-1, 1, 1, 1, weights.shape[-1])
    total = None
    for tap, weight in zip(_taps(x, w, fill), taps, strict=True):
        product = tap.astype(weights.dtype) * weight
        total = product if total is None else total + product
    if total is None:
        raise ValueError(f"a window must have at least one pixel, got {w.size}")
    return total


def _reduce(x: jax.Array, w: Window, start: Any, operation: Any) -> jax.Array:
    pads = ((0, 0), *w.pads, (0, 0))
    return lax.reduce_window(x, np.asarray(start, x.dtype), operation, (1, *w.size, 1), (1, *w.strides, 1), pads)


def pool_sum(x: jax.Array, w: Window) -> jax.Array:
    """Sums over windows, ``[n, h, w, c] -> [n, h', w', c]``; the padding counts as 0."""
    if w.size == x.shape[1:3] and not np.any(w.pads):
        return jnp.sum(x, axis=(1, 2), keepdims=True)
    return _reduce(x, w, 0, lax.add)


def pool_max(x: jax.Array, w: Window) -> jax.Array:
    """Maxima over windows; the padding counts as the smallest value of the dtype."""
    low = np.iinfo(x.dtype).min if np.issubdtype(x.dtype, np.integer) else -np.inf
    return _reduce(x, w, low, lax.max)


def pool_counts(image: Sequence[int], w: Window) -> np.ndarray:
    """How many pixels of the image each window covers, int32 ``[1, h', w', 1]``."""
    counts = []
    for size, k, stride, (low, high) in zip(image, w.size, w.strides, w.pads, strict=True):
        starts = np.arange((size + low + high - k) // stride + 1) * stride - low
        counts.append(np.minimum(starts + k, size) - np.maximum(starts, 0))
    return (counts[0][:, None] * counts[1][None, :]).astype(np.int32)[None, :, :, None]
