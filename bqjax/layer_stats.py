"""What a quantised layer's inputs look like, and how much its outputs matter: all that choosing its codes needs.

Layers see their inputs as rows ``[d]`` of what one output is made of, and weights as ``[G, rows, d]``: ``G`` is 1, but the
number of channels for a depthwise convolution, each of whose filters sees another input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.compensation import inverse_factor
from bqjax.lattice import LayerStats

__all__ = ["Layer", "Measured", "Moments", "input_rows", "layer_stats", "same_pads", "to_rows", "to_weight"]


class Layer(Protocol):
    """A convolution or dense layer: its kind in the schema's words and the options that place its windows."""

    @property
    def kind(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


def to_rows(weight: np.ndarray, kind: str) -> np.ndarray:
    """A weight in the file's layout as ``[G, rows, d]``.

    ``CONV_2D`` is ``[cout, kh, kw, cin]``, ``FULLY_CONNECTED`` ``[out, in]``, ``DEPTHWISE_CONV_2D`` ``[1, kh, kw, cin * m]``
    with ``m`` filters for each input channel, which here are ``cin`` groups of ``m`` rows where ``m`` is 1 and one group a
    filter otherwise.
    """
    if kind == "DEPTHWISE_CONV_2D":
        return np.moveaxis(weight[0], -1, 0).reshape(weight.shape[-1], 1, -1)
    return weight.reshape(1, weight.shape[0], -1)


def to_weight(rows: np.ndarray, kind: str, shape: Sequence[int]) -> np.ndarray:
    """The inverse of :func:`to_rows`."""
    if kind == "DEPTHWISE_CONV_2D":
        _, kh, kw, channels = shape
        return np.moveaxis(rows.reshape(channels, kh, kw), 0, -1)[None]
    return rows.reshape(shape)


def same_pads(size: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after one dimension for padding ``SAME``."""
    reach = (window - 1) * dilation + 1
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return total // 2, total - total // 2


def input_rows(x: jax.Array, layer: Layer, shape: Sequence[int]) -> jax.Array:
    """What each output is made of.

    Args:
      x: ``[n, h, w, c]`` or ``[n, ..., in]``, counted from the zero point (padding is 0).
      layer: the operator.
      shape: of its weight.

    Returns:
      ``[G, positions, d]`` in the order of :func:`to_rows`.
    """
    if layer.kind == "FULLY_CONNECTED":
        return x.reshape(1, -1, shape[1])
    _, kh, kw, last = shape
    options = layer.options
    strides = options["stride_h"], options["stride_w"]
    dilations = options.get("dilation_hfactor", 1), options.get("dilation_wfactor", 1)
    pads = [(0, 0), (0, 0)]
    if options["padding"] == "SAME":
        pads = [same_pads(*of) for of in zip(x.shape[1:3], (kh, kw), strides, dilations, strict=True)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((x.shape[i + 1] - (w - 1) * dilations[i] - 1) // strides[i] + 1 for i, w in enumerate((kh, kw)))
    taps = []
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilations[0], j * dilations[1]
            taps.append(
                x[
                    :,
                    top : top + (height - 1) * strides[0] + 1 : strides[0],
                    left : left + (width - 1) * strides[1] + 1 : strides[1],
                ]
            )
    if layer.kind == "DEPTHWISE_CONV_2D":
        stacked = jnp.stack(taps, axis=-1).reshape(-1, x.shape[-1], kh * kw)  # [positions, cin, d]
        return jnp.repeat(jnp.moveaxis(stacked, 1, 0), last // x.shape[-1], axis=0)
    return jnp.concatenate(taps, axis=-1).reshape(1, -1, kh * kw * last)


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
            rows = input_rows(x.astype(jnp.float32), layer, shape)
            if rows.shape[1] > positions:
                rows = rows[:, jax.random.choice(key, rows.shape[1], (positions,), replace=False)]
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


def layer_stats(measured: Measured, *, centred: bool = True, damping: float = 0.01) -> LayerStats:
    """Statistics of a layer, for :func:`bqjax.lattice.quantise_layer`.

    The curvature of the network's outputs in a layer's weights is taken as the product of one matrix for the inputs and
    one number for each output (Martens, Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate
    curvature", with a diagonal for the outputs): the number is the importance of the output's weights, over what the inputs
    account for.

    Args:
      measured: moments and importance.
      centred: errors along the inputs' mean count nothing, since the bias takes them up.
      damping: see :func:`bqjax.compensation.inverse_factor`; ``d / rows`` is added to it: a matrix from few rows knows
        directions along which nothing seems to happen, and errors must not be hidden there (the shrinkage of Ledoit, Wolf
        2004, "A well-conditioned estimator for large-dimensional covariance matrices", in its order of magnitude).
    """
    second, mean = jnp.asarray(measured.second), jnp.asarray(measured.mean)
    moment = second - mean[:, :, None] * mean[:, None, :] if centred else second
    order, factor = jax.vmap(inverse_factor, in_axes=(0, None))(moment, damping + mean.shape[1] / measured.rows)
    power = np.trace(np.asarray(second, np.float64), axis1=1, axis2=2)  # [G]
    outputs = measured.importance.sum(-1, dtype=np.float64) / np.maximum(power, 1e-30)[:, None]
    # What calibration never reached is not known to be worthless.
    outputs += 0.01 * outputs.mean() + 1e-30
    return LayerStats(order, factor, jnp.asarray(outputs, jnp.float32))
