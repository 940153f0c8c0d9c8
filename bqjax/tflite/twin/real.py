"""Operators of 8-bit networks in real numbers: the scales without the rounding, for gradients.

Each activation is clamped to what its codes can represent, so that a saturated one passes no gradient, as a change of it
changes no code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.tflite.format.graph import Tensor
from bqjax.tflite.twin import windows
from bqjax.tflite.twin.arithmetic import activation_range
from bqjax.tflite.twin.operators import Node, mean_axes, shift_of

__all__ = ["REAL_OPERATORS", "dequantized"]


def dequantized(codes: Any, tensor: Tensor) -> jax.Array:
    """``(codes - zero_point) * scale``, float32 of the codes' shape; unquantized tensors as they are."""
    values = jnp.asarray(codes).astype(jnp.float32)
    if tensor.scale is None or tensor.zero_point is None:
        return values
    shape = [1] * values.ndim
    if tensor.axis is not None:
        shape[tensor.axis] = -1
    zero = np.broadcast_to(tensor.zero_point, tensor.scale.shape).astype(np.float32)
    return (values - zero.reshape(shape)) * tensor.scale.reshape(shape)


def _clamp(x: jax.Array, node: Node, activation: str | None = None) -> jax.Array:
    t = node.output
    if t.scale is None or t.zero_point is None:
        return x
    scale, zero = float(t.scale[0]), int(t.zero_point[0]) - shift_of(t.dtype)
    low, high = activation_range(node.activation if activation is None else activation, scale, zero)
    return jnp.clip(x, (low - zero) * scale, (high - zero) * scale)


def _plus(total: jax.Array, bias: jax.Array | None) -> jax.Array:
    return total if bias is None else total + bias.reshape((1,) * (total.ndim - 1) + (-1,))


def _conv(node: Node, x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    view = windows.window(node.operator.options, x.shape[1:3], w.shape[1:3])
    total = lax.conv_general_dilated(
        x, w, view.strides, view.pads, rhs_dilation=view.dilation, dimension_numbers=("NHWC", "OHWI", "NHWC")
    )
    return _clamp(_plus(total, bias), node)


def _depthwise(node: Node, x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    view = windows.window(node.operator.options, x.shape[1:3], w.shape[1:3])
    return _clamp(_plus(windows.depthwise(x, w[0], view, 0.0), bias), node)


def _dense(node: Node, x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    x = x.reshape(*x.shape[:-1], w.shape[1]) if node.operator.options.get("keep_num_dims") else x.reshape(-1, w.shape[1])
    return _clamp(_plus(jnp.matmul(x, w.T), bias), node)


def _add(node: Node, a: jax.Array, b: jax.Array) -> jax.Array:
    rank = len(node.output.shape)
    a, b = (v.reshape((1,) * (rank - v.ndim) + v.shape) for v in (a, b))
    return _clamp(a + b, node)


def _pad(node: Node, x: jax.Array) -> jax.Array:
    amounts = node.tensor(1).data
    if amounts is None:
        raise ValueError("PAD must have constant amounts")
    fill = dequantized(node.tensor(2).data, node.output).reshape(()) if len(node.inputs) > 2 else jnp.zeros((), x.dtype)
    return lax.pad(x, fill, [(int(low), int(high), 0) for low, high in amounts])


def _pool_view(node: Node, x: jax.Array) -> windows.Window:
    options = node.operator.options
    return windows.window(options, x.shape[1:3], (options["filter_height"], options["filter_width"]))


def _average(node: Node, x: jax.Array) -> jax.Array:
    view = _pool_view(node, x)
    return _clamp(windows.pool_sum(x, view) / jnp.asarray(windows.pool_counts(x.shape[1:3], view), jnp.float32), node)


def _max_pool(node: Node, x: jax.Array) -> jax.Array:
    return _clamp(windows.pool_max(x, _pool_view(node, x)), node)


def _reshape(node: Node, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], *node.output.shape[1:])


def _concatenate(node: Node, *inputs: jax.Array) -> jax.Array:
    return _clamp(lax.concatenate(inputs, node.operator.options["axis"] % len(node.output.shape)), node)


def _mean(node: Node, x: jax.Array) -> jax.Array:
    return _clamp(jnp.mean(x, axis=mean_axes(node), keepdims=bool(node.operator.options["keep_dims"])), node)


def _clamped(node: Node, x: jax.Array) -> jax.Array:
    return _clamp(x, node, node.operator.kind if node.operator.kind in ("RELU", "RELU6") else None)


REAL_OPERATORS: dict[str, Callable[..., jax.Array]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _average,
    "CONCATENATION": _concatenate,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _clamped,
    "RELU": _clamped,
    "RELU6": _clamped,
    "RESHAPE": _reshape,
}
"""Kind -> function of a :class:`~bqjax.tflite.twin.operators.Node` and real inputs."""
