"""What a quantized layer's inputs look like, and how much its outputs matter: all that choosing its codes needs.

Layers see their inputs as rows ``[d]`` of what one output is made of, and weights as ``[G, rows, d]``: ``G`` is 1, but the
number of channels for a depthwise convolution, each of whose filters sees another input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.methods.rate_distortion.leaf import LeafStats, leaf_stats
from bqjax.sensitivity.leaf_curvature import Layout, LeafCurvature

__all__ = ["Layer", "Measured", "Moments", "input_rows", "layer_layout", "layer_stats", "same_pads"]


class Layer(Protocol):
    """A convolution or dense layer: its kind in the schema's words and the options that place its windows."""

    @property
    def kind(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


def layer_layout(kind: str, shape: Sequence[int]) -> Layout:
    """How a weight in the file's layout is seen as ``[G, rows, d]``.

    ``CONV_2D`` is ``[cout, kh, kw, cin]``, ``FULLY_CONNECTED`` ``[out, in]``, ``DEPTHWISE_CONV_2D`` ``[1, kh, kw, cin * m]``
    with ``m`` filters for each input channel, which here are one group a filter.
    """
    shape = tuple(shape)
    if kind == "DEPTHWISE_CONV_2D":
        return Layout(shape=shape, view=shape, groups=(3,), rows=(0,), inputs=(1, 2))
    return Layout(shape=shape, view=shape, groups=(), rows=(0,), inputs=tuple(range(1, len(shape))))


def same_pads(size: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after one dimension for padding ``SAME``."""
    reach = (window - 1) * dilation + 1
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return total // 2, total - total // 2


def _output_size(x_shape: Sequence[int], layer: Layer, shape: Sequence[int]) -> tuple[int, ...]:
    """``(n, height, width)`` of a convolution's output, ``(rows,)`` of a dense layer's."""
    if layer.kind == "FULLY_CONNECTED":
        return (math.prod(x_shape) // shape[1],)
    windows = [(w - 1) * d + 1 for w, d in zip(shape[1:3], _pair(layer, "dilation_{}factor"), strict=True)]
    strides = _pair(layer, "stride_{}")
    if layer.options["padding"] == "SAME":
        return x_shape[0], *(-(-size // stride) for size, stride in zip(x_shape[1:3], strides, strict=True))
    return x_shape[0], *((size - w) // stride + 1 for size, w, stride in zip(x_shape[1:3], windows, strides, strict=True))


def _pair(layer: Layer, name: str) -> tuple[int, int]:
    """An option of both dimensions; dilations may be absent."""
    return layer.options.get(name.format("h"), 1), layer.options.get(name.format("w"), 1)


def input_rows(x: jax.Array, layer: Layer, shape: Sequence[int], positions: jax.Array | None = None) -> jax.Array:
    """What each output is made of.

    Args:
      x: ``[n, h, w, c]`` or ``[n, ..., in]``, counted from the zero point (padding is 0).
      layer: the operator.
      shape: of its weight.
      positions: ``[p]`` of the outputs that are looked at, numbered over examples, rows and columns; None takes all. The others
        cost nothing.

    Returns:
      ``[G, p, d]`` in the order of :func:`layer_layout`.
    """
    size = _output_size(x.shape, layer, shape)
    positions = jnp.arange(math.prod(size)) if positions is None else positions
    if layer.kind == "FULLY_CONNECTED":
        return x.reshape(-1, shape[1])[positions][None]
    _, kh, kw, last = shape
    example, *place = jnp.unravel_index(positions, size)
    strides, dilations = _pair(layer, "stride_{}"), _pair(layer, "dilation_{}factor")
    pads = [0, 0]
    if layer.options["padding"] == "SAME":
        pads = [same_pads(*of)[0] for of in zip(x.shape[1:3], (kh, kw), strides, dilations, strict=True)]
    taps = []
    for tap in itertools.product(range(kh), range(kw)):
        at = [place[i] * strides[i] + tap[i] * dilations[i] - pads[i] for i in range(2)]
        inside = (at[0] >= 0) & (at[0] < x.shape[1]) & (at[1] >= 0) & (at[1] < x.shape[2])
        seen = x[example, jnp.clip(at[0], 0, x.shape[1] - 1), jnp.clip(at[1], 0, x.shape[2] - 1)]  # [p, c]
        taps.append(jnp.where(inside[:, None], seen, 0))
    if layer.kind == "DEPTHWISE_CONV_2D":
        stacked = jnp.stack(taps, axis=-1)  # [p, cin, d]
        return jnp.repeat(jnp.moveaxis(stacked, 1, 0), last // x.shape[-1], axis=0)
    return jnp.concatenate(taps, axis=-1)[None]


class Moments:
    """First and second moments of the rows of one layer, summed batch by batch in float32.

    Args:
      layer, shape: the operator and its weight's shape.
      positions: of which at most so many rows of a batch are taken, evenly spread by a random order.
      key: of that order.
    """

    def __init__(self, layer: Layer, shape: Sequence[int], positions: int, key: jax.Array):
        self._key, self._batches = key, 0
        self._sums: Any = None

        @jax.jit
        def sums(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            total = math.prod(_output_size(x.shape, layer, shape))
            chosen = jax.random.choice(key, total, (positions,), replace=False) if total > positions else None
            rows = input_rows(x, layer, shape, chosen).astype(jnp.float32)
            second = jnp.einsum("gpi,gpj->gij", rows, rows, preferred_element_type=jnp.float32)
            return second, rows.sum(1), jnp.float32(rows.shape[1])

        self._of = sums

    def add(self, x: jax.Array) -> None:
        """Adds a batch of inputs, counted from their zero point."""
        new = self._of(x, jax.random.fold_in(self._key, self._batches))
        self._batches += 1
        self._sums = new if self._sums is None else jax.tree.map(jnp.add, self._sums, new)

    def result(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Second moment ``[G, d, d]``, mean ``[G, d]``, and over how many rows they are taken."""
        if self._sums is None:
            raise ValueError("no inputs were added")
        second, first, count = jax.device_get(self._sums)
        return second / count, first / count, int(count)


class Measured(NamedTuple):
    """What calibration data say of a layer.

    Attributes:
      second, mean: ``[G, d, d]`` and ``[G, d]``, moments of its inputs, in steps from their zero point.
      rows: over how many rows of inputs.
      importance: ``[G, rows, d]`` of the single weights, see :func:`bqjax.sensitivity.importance.output_importance`.
    """

    second: np.ndarray
    mean: np.ndarray
    rows: int
    importance: np.ndarray


def layer_stats(measured: Measured, *, centred: bool = True, damping: float = 0.01) -> LeafStats:
    """Statistics of a layer for the solver, from what calibration says of it.

    The curvature of the network's outputs in a layer's weights is taken as the product of one matrix for the inputs and
    one number for each output (:class:`bqjax.sensitivity.leaf_curvature.LeafCurvature`): the number is the importance of the
    output's weights, over what the inputs account for.

    Args:
      measured: moments and importance.
      centred: errors along the inputs' mean count nothing, since the bias takes them up.
      damping: see :func:`bqjax.methods.rate_distortion.leaf.leaf_stats`.
    """
    power = np.trace(np.asarray(measured.second, np.float64), axis1=1, axis2=2)  # [G]
    outputs = measured.importance.sum(-1, dtype=np.float64) / np.maximum(power, 1e-30)[:, None]
    shape = measured.importance.shape
    layout = Layout(shape=shape, view=shape, groups=(0,), rows=(1,), inputs=(2,))
    curvature = LeafCurvature(measured.second, measured.mean, outputs, measured.rows, centred, layout)
    return leaf_stats(curvature, centred=centred, damping=damping)
