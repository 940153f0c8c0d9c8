"""Operators of 8-bit networks on integers, as TFLite's kernels compute them.

Activations and weights are int8 throughout: uint8 codes and their zero points are moved down by 128, which changes no real
number. Sums are int32. ``sum (x - z_x)(w - z_w)`` is taken apart into a product of the int8 codes and sums of rows and columns,
so that the product runs on int8 hardware instructions.

References:
  Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2.3; TensorFlow ``lite/kernels/internal/reference``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.tflite.format.graph import Operator, Tensor
from bqjax.tflite.twin import windows
from bqjax.tflite.twin.arithmetic import Factors, activation_range, quantize_multiplier, rescale_once, rescale_twice

__all__ = ["OPERATORS", "Node", "int8_codes", "shift_of"]


class Node(NamedTuple):
    """An operator with what is known of its tensors before anything runs.

    Attributes:
      operator: kind and options.
      inputs: of the operator; None where an optional one is absent.
      output: its only output.
      reference: whether matrix products are rounded as the reference kernels do, or as ruy does.
    """

    operator: Operator
    inputs: tuple[Tensor | None, ...]
    output: Tensor
    reference: bool

    def tensor(self, i: int) -> Tensor:
        """Input ``i``, which must be there."""
        found = self.inputs[i] if i < len(self.inputs) else None
        if found is None:
            raise ValueError(f"{self.operator.kind} lacks its input {i}")
        return found

    @property
    def activation(self) -> str:
        return self.operator.options.get("fused_activation_function", "NONE")


def shift_of(dtype: np.dtype) -> int:
    """What codes of a dtype are moved down by to fit int8."""
    return 128 if dtype == np.uint8 else 0


def _scale(t: Tensor) -> float:
    if t.scale is None or t.dtype not in (np.int8, np.uint8):
        raise ValueError(f"tensor {t.name!r} must be quantized to int8 or uint8, it is {t.dtype}")
    return float(t.scale[0])


def _zero(t: Tensor) -> int:
    _scale(t)
    return int(t.zero_point[0]) - shift_of(t.dtype)  # type: ignore[index]


def int8_codes(codes: Any, dtype: np.dtype) -> jax.Array:
    """Codes of ``dtype``, in whatever type they come, moved into int8."""
    if dtype == np.uint8:
        return (jnp.asarray(codes).astype(jnp.int32) - 128).astype(jnp.int8)
    return jnp.asarray(codes).astype(jnp.int8)


def _finish(total: jax.Array, node: Node) -> jax.Array:
    """Adds the output's zero point, and clamps to the fused activation's range."""
    low, high = activation_range(node.activation, _scale(node.output), _zero(node.output))
    return jnp.clip(total + _zero(node.output), low, high).astype(jnp.int8)


def _factors(node: Node) -> Factors:
    """Factor of the accumulator, of one entry or one a channel."""
    x, w = node.tensor(0), node.tensor(1)
    scales = w.scale
    if scales is None:
        raise ValueError(f"weight {w.name!r} is not quantized")
    if len(scales) == 1 and (w.dtype == np.uint8 or node.operator.kind == "FULLY_CONNECTED"):
        # These kernels multiply the two scales in single precision.
        product = (np.float32(_scale(x)) * scales).astype(np.float64)
    else:
        product = _scale(x) * scales.astype(np.float64)
    return quantize_multiplier(product / _scale(node.output))


def _product_codes(total: jax.Array, node: Node) -> jax.Array:
    """Codes of a matrix product's accumulator."""
    if node.reference and node.operator.kind == "FULLY_CONNECTED":
        return _finish(rescale_once(total, _factors(node)), node)
    return _finish(rescale_twice(total, _factors(node), up=not node.reference), node)


def _row(values: jax.Array, ndim: int) -> jax.Array:
    return values.reshape((1,) * (ndim - 1) + (-1,))


def _weight_zeros(node: Node) -> np.ndarray:
    w = node.tensor(1)
    if w.zero_point is None:
        raise ValueError(f"weight {w.name!r} is not quantized")
    return w.zero_point.astype(np.int32) - shift_of(w.dtype)


def _product(node: Node, x: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    """``sum_k (x - z_x)(w - z_w) + bias`` of int8 ``[..., k]`` and ``[c, k]``, int32 ``[..., c]``."""
    total = lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    zero_x, zero_w = _zero(node.tensor(0)), _weight_zeros(node)
    offset = -zero_x * jnp.sum(w, axis=1, dtype=jnp.int32) + zero_x * x.shape[-1] * zero_w
    total = total + _row(offset if bias is None else offset + bias, x.ndim)
    if zero_w.any():
        total = total - jnp.sum(x, axis=-1, keepdims=True, dtype=jnp.int32) * zero_w.reshape((1,) * (x.ndim - 1) + (-1,))
    return total


def _conv(node: Node, x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    if w.shape[3] != x.shape[3]:
        raise ValueError(f"grouped convolutions are not supported: {x.shape[3]} channels meet filters of {w.shape[3]}")
    view = windows.window(node.operator.options, x.shape[1:3], w.shape[1:3])
    rows = windows.patches(x, view, _zero(node.tensor(0)))
    return _product_codes(_product(node, rows, w.reshape(w.shape[0], -1), bias), node)


def _depthwise(node: Node, x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    view = windows.window(node.operator.options, x.shape[1:3], w.shape[1:3])
    wide = w[0].astype(jnp.int32) - _weight_zeros(node).reshape(1, 1, -1)
    total = windows.depthwise(x, wide, view, _zero(node.tensor(0)))
    offset = -_zero(node.tensor(0)) * jnp.sum(wide, axis=(0, 1))
    total = total + _row(offset if bias is None else offset + bias, 4)
    codes = rescale_twice(total, _factors(node))
    if not node.reference and node.tensor(1).dtype == np.int8:
        # The int8 kernel's vector code works on 8 channels at a time and takes halves up; what is left over goes the other way,
        # and so does all of the uint8 kernel.
        vectors = np.arange(total.shape[-1]) < total.shape[-1] // 8 * 8
        codes = jnp.where(vectors.reshape(1, 1, 1, -1), rescale_twice(total, _factors(node), up=True), codes)
    return _finish(codes, node)


def _dense(node: Node, x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    x = x.reshape(*x.shape[:-1], w.shape[1]) if node.operator.options.get("keep_num_dims") else x.reshape(-1, w.shape[1])
    return _product_codes(_product(node, x, w, bias), node)


def _add(node: Node, a: jax.Array, b: jax.Array) -> jax.Array:
    first, second = node.tensor(0), node.tensor(1)
    twice = 2 * max(_scale(first), _scale(second))

    def to_common(codes: jax.Array, t: Tensor) -> jax.Array:
        return rescale_twice((codes.astype(jnp.int32) - _zero(t)) << 20, quantize_multiplier(_scale(t) / twice))

    shape = (max(a.shape[0], b.shape[0]), *node.output.shape[1:])
    left, right = (_broadcast(to_common(codes, t), shape) for codes, t in ((a, first), (b, second)))
    return _finish(rescale_twice(left + right, quantize_multiplier(twice / (2**20 * _scale(node.output)))), node)


def _broadcast(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(x.reshape((1,) * (len(shape) - x.ndim) + x.shape), shape)


def _pad(node: Node, x: jax.Array, *_: jax.Array) -> jax.Array:
    amounts = node.tensor(1).data
    if amounts is None or np.any(amounts[0]) or np.any(amounts < 0):
        raise ValueError("PAD must have constant amounts, and none before or after the batch")
    fill = int(node.tensor(2).data.reshape(())) - shift_of(node.output.dtype) if len(node.inputs) > 2 else _zero(node.output)  # type: ignore[union-attr]
    return lax.pad(x, np.int8(fill), [(int(low), int(high), 0) for low, high in amounts])


def _pool_view(node: Node, x: jax.Array) -> windows.Window:
    options = node.operator.options
    return windows.window(options, x.shape[1:3], (options["filter_height"], options["filter_width"]))


def _average(node: Node, x: jax.Array) -> jax.Array:
    view = _pool_view(node, x)
    # The padding is outside of the image: it counts neither in the sum nor in the number.
    total = windows.pool_sum(x.astype(jnp.int32) + shift_of(node.output.dtype), view)
    counts = windows.pool_counts(x.shape[1:3], view)
    mean = lax.div(total + jnp.where(total > 0, counts // 2, -(counts // 2)), jnp.broadcast_to(counts, total.shape))
    return _clip(mean - shift_of(node.output.dtype), node)


def _clip(codes: jax.Array, node: Node) -> jax.Array:
    low, high = activation_range(node.activation, _scale(node.output), _zero(node.output))
    return jnp.clip(codes, low, high).astype(jnp.int8)


def _max_pool(node: Node, x: jax.Array) -> jax.Array:
    return _clip(windows.pool_max(x, _pool_view(node, x)), node)


def _reshape(node: Node, x: jax.Array, *_: jax.Array) -> jax.Array:
    if node.output.shape[:1] != node.tensor(0).shape[:1]:
        raise ValueError(f"RESHAPE must leave the batch alone, got {node.tensor(0).shape} to {node.output.shape}")
    return x.reshape(x.shape[0], *node.output.shape[1:])


def _softmax(node: Node, x: jax.Array) -> jax.Array:
    # The kernels take the exponentials from a table of single-precision numbers.
    real = (x.astype(jnp.float32) - jnp.max(x, axis=-1, keepdims=True).astype(jnp.float32)) * np.float32(
        _scale(node.tensor(0)) * node.operator.options["beta"]
    )
    codes = jnp.round(jax.nn.softmax(real, axis=-1) * np.float32(1 / _scale(node.output))).astype(jnp.int32)
    return jnp.clip(codes + _zero(node.output), -128, 127).astype(jnp.int8)


def _requantize(node: Node, x: jax.Array) -> jax.Array:
    """QUANTIZE of codes, and RELU and RELU6 on their own."""
    moved, factors = x.astype(jnp.int32) - _zero(node.tensor(0)), quantize_multiplier(_scale(node.tensor(0)) / _scale(node.output))
    total = rescale_twice(moved, factors)
    if node.operator.kind == "QUANTIZE" and not node.reference:
        # The builtin kernel's vector code works on 16 codes of an example at a time and takes halves up; the rest goes away from 0.
        shape = node.output.shape[1:]
        size = int(np.prod(shape))
        vectors = (np.arange(size) < size // 16 * 16).reshape(1, *shape)
        total = jnp.where(vectors, rescale_twice(moved, factors, up=True), total)
    low, high = activation_range(
        node.operator.kind if node.operator.kind != "QUANTIZE" else "NONE", _scale(node.output), _zero(node.output)
    )
    return jnp.clip(total + _zero(node.output), low, high).astype(jnp.int8)


def _concatenate(node: Node, *inputs: jax.Array) -> jax.Array:
    """Exact but for uint8 inputs of another scale than the output's, which the kernel rescales in floats: within one step."""
    axis = node.operator.options["axis"] % len(node.output.shape)
    if axis == 0:
        raise ValueError("CONCATENATION along the batch is not supported")

    def moved(codes: jax.Array, t: Tensor) -> jax.Array:
        if (_scale(t), _zero(t)) == (_scale(node.output), _zero(node.output)):
            return codes
        # Only the uint8 kernel rescales, in single precision.
        factor = np.float32(_scale(t)) * (np.float32(1) / np.float32(_scale(node.output)))
        real = (codes.astype(jnp.float32) + shift_of(t.dtype)) * factor + np.float32(-(_zero(t) + shift_of(t.dtype))) * factor
        away = jnp.sign(real) * jnp.floor(jnp.abs(real) + 0.5)
        return jnp.clip(away.astype(jnp.int32) + _zero(node.output), -128, 127).astype(jnp.int8)

    return _clip(lax.concatenate([moved(x, node.tensor(i)) for i, x in enumerate(inputs)], axis), node)


def _mean(node: Node, x: jax.Array, *_: jax.Array) -> jax.Array:
    axes = mean_axes(node)
    number = int(np.prod([x.shape[a] for a in axes]))
    m, shift = quantize_multiplier(_scale(node.tensor(0)) / _scale(node.output))
    # The kernel divides the factor by the number of terms, with as many bits as fit.
    bits = min(number.bit_length() - 1, 31 + int(shift), 32)
    factors = np.asarray((int(m) << bits) // number, np.int32), np.asarray(int(shift) - bits, np.int32)
    keep = bool(node.operator.options["keep_dims"])
    if not node.reference and x.ndim == 4 and axes == (1, 2) and keep:
        return _mean_over_images(node, x, number)
    total = jnp.sum(x.astype(jnp.int32) - _zero(node.tensor(0)), axis=axes, keepdims=keep)
    return _finish(rescale_twice(total, factors), node)


def _mean_over_images(node: Node, x: jax.Array, number: int) -> jax.Array:
    """The builtin kernel's own way where height and width are averaged: sums of codes as they are, one factor, one offset."""
    shift, source = shift_of(node.output.dtype), np.float32(_scale(node.tensor(0)))
    target = np.float32(_scale(node.output))
    zero = _zero(node.tensor(0)) + shift
    moved = np.float32(zero) * source / target
    offset = _zero(node.output) + shift - int(moved + np.float32(0.5 if moved > 0 else -0.5))
    total = jnp.sum(x.astype(jnp.int32) + shift, axis=(1, 2), keepdims=True)
    codes = rescale_twice(total, quantize_multiplier(float(source / (np.float32(number) * target)))) + offset - shift
    return jnp.clip(codes, -128, 127).astype(jnp.int8)


def mean_axes(node: Node) -> tuple[int, ...]:
    """Axes of a MEAN, without the batch.

    Raises:
      ValueError: they are not constant, or the batch is one of them.
    """
    axes = node.tensor(1).data
    rank = len(node.tensor(0).shape)
    found: Sequence[int] = [] if axes is None else [int(a) % rank for a in axes.reshape(-1)]
    if not found or 0 in found:
        raise ValueError("MEAN must have constant axes without the batch")
    return tuple(sorted(set(found)))


OPERATORS: dict[str, Callable[..., jax.Array]] = {
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
    "QUANTIZE": _requantize,
    "RELU": _requantize,
    "RELU6": _requantize,
    "RESHAPE": _reshape,
    "SOFTMAX": _softmax,
}
"""Kind -> function of a :class:`Node` and the operator's int8 inputs (int32 for biases)."""
