"""What the search of integer codes needs to know of files for TFLM: which values a layer may have, and the bytes that they take.

At a given lmbda a layer takes what costs least by distortion plus lmbda times its bits, tables and all:

- the even grid in balance with lmbda, its indices priced by the lengths of their Huffman codewords;
- look-up tables of each width: values of least error under the layer's curvature, one table for all, or one a channel;
- the codes that it has, by a Huffman code, a bitmap or as they are, where nothing is worth giving up.

Weights are chosen by error feedback in all of them, see :func:`bqjax.methods.rate_distortion.feedback.compensated_values`.
Values of a table are those of weighted k-means of the codes, a weight counting by its curvature (exact, by dynamic programming).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.codec.huffman import code_lengths
from bqjax.kmeans.histogram import optimal_groups
from bqjax.methods.rate_distortion.feedback import compensated_values
from bqjax.methods.rate_distortion.leaf import LeafStats, mean_curvature
from bqjax.methods.rate_distortion.levels import balanced_step
from bqjax.tflite.codes.grid import QuantizedLayer, quantize_layer_on, weight_curvature
from bqjax.tflite.micro.choice import ENTRY_BYTES
from bqjax.tflite.micro.encoded import HEADER_BYTES
from bqjax.tflite.micro.huffman import MAX_CODE_BITS, huffman_bytes

__all__ = ["MicroTarget"]

_UNSEEN_BITS = 2.0  # beyond the longest codeword, for a value that nothing has taken yet
_FEW = 16  # values that tables are filled up to: layers share compiled programs


@dataclass(frozen=True, kw_only=True)
class MicroTarget:
    """Files for TFLM as the target of :class:`bqjax.tflite.codes.search.QuantizedConfig`.

    Attributes:
      widths: bits of look-up indices that are tried.
      channel_widths: the same with a table a channel.
      steps: factors on the step in balance that are tried for Huffman codes; empty tries none.
      arena: bytes that a layer's decoded weights may take; larger layers keep their codes. None: no limit.
    """

    widths: tuple[int, ...] = (2, 3, 4, 5)
    channel_widths: tuple[int, ...] = (2, 3)
    steps: tuple[float, ...] = (1.0,)
    arena: int | None = None

    def __post_init__(self) -> None:
        if not all(1 <= width <= 7 for width in self.widths + self.channel_widths):
            raise ValueError(f"look-up indices have 1 to 7 bits, got {self.widths} and {self.channel_widths}")

    def prepared(
        self, codes: np.ndarray, zero_point: int, stats: LeafStats, settings: Mapping[str, Any]
    ) -> Callable[[float], QuantizedLayer | None]:
        """New codes of one layer by lmbda, see :class:`bqjax.tflite.codes.search.Target`."""
        if self.arena is not None and codes.size > self.arena:
            return lambda lmbda: None
        tables = [
            _with_table(codes, stats, width, settings["compensate"], by_channel)
            for widths, by_channel in ((self.widths, False), (self.channel_widths, True))
            for width in widths
            if 1 << width < len(np.unique(codes)) and (not by_channel or codes.shape[-1] > 1 << width)
        ]
        kept_bits = 8.0 * min(codes.size, _stored_bytes(codes, zero_point))

        def at(lmbda: float) -> QuantizedLayer | None:
            found = [layer for layer in map(partial(_even, codes, zero_point, stats, lmbda, settings), self.steps) if layer]
            best = min([*tables, *found], key=lambda layer: layer.distortion + lmbda * layer.bits, default=None)
            return best if best is not None and best.distortion + lmbda * best.bits < lmbda * kept_bits else None

        return at


def _stored_bytes(codes: np.ndarray, zero_point: int) -> int:
    """By a Huffman code or a bitmap, whichever is smaller, with what else an encoded weight takes."""
    pruned = -(-codes.size // 8) + int(np.count_nonzero(codes != zero_point)) + HEADER_BYTES
    return min(huffman_bytes(np.unique(codes, return_counts=True)[1])[1], pruned) + ENTRY_BYTES


def _price(counts: np.ndarray, zero: int) -> np.ndarray:
    """Bits of each value's codeword."""
    del zero
    bits = code_lengths(counts.astype(np.int64), MAX_CODE_BITS).astype(np.float64)
    return np.where(bits > 0, bits, bits.max() + _UNSEEN_BITS)


def _even(
    codes: np.ndarray, zero_point: int, stats: LeafStats, lmbda: float, settings: Mapping[str, Any], scale: float
) -> QuantizedLayer | None:
    """The grid in balance, with the bits that it takes in the file."""
    others = {name: value for name, value in settings.items() if name != "step_scale"}
    step = scale * settings["step_scale"] * balanced_step(mean_curvature(stats), lmbda)
    layer = quantize_layer_on(codes, zero_point, stats, lmbda, step=step, **others, price=_price)
    return None if layer is None else layer._replace(bits=8.0 * _stored_bytes(layer.codes, zero_point))


def _with_table(codes: np.ndarray, stats: LeafStats, width: int, compensate: bool, by_channel: bool) -> QuantizedLayer:
    """The codes on the ``2^width`` values of least error, the same for all channels or not."""
    groups, rows, d = codes.shape
    mass = weight_curvature(stats)
    channels = codes.reshape(-1, d) if by_channel else codes.reshape(1, -1)
    low, span = int(codes.min()), int(codes.max()) - int(codes.min()) + 1
    at = (channels - low) + span * np.arange(len(channels))[:, None]
    masses = np.bincount(at.reshape(-1), mass.reshape(-1), span * len(channels)).reshape(len(channels), span)
    points = low + np.arange(span)
    padded = np.zeros((len(channels), 256))  # one program for all layers
    padded[:, :span] = masses / np.maximum(masses.sum(1, keepdims=True), 1e-30)
    group = np.asarray(_groups(jnp.arange(256.0), jnp.asarray(padded, jnp.float32), 1 << width))[:, :span]
    values = np.stack([_means(points, m, g, 1 << width) for m, g in zip(padded[:, :span], group, strict=True)])
    filled = np.pad(values, ((0, 0), (0, max(0, _FEW - values.shape[1]))), "edge").astype(np.float32)
    table = np.broadcast_to(filled.reshape(groups, rows, -1) if by_channel else filled, (groups, rows, filled.shape[1]))
    bits = jnp.zeros(table.shape, jnp.float32)
    run = jax.vmap(compensated_values, in_axes=(0, 0, 0, 0, 0, 0, None, None))
    index, error = run(
        jnp.asarray(codes, jnp.float32), stats.order, stats.factor, stats.importance, jnp.asarray(table), bits, 0.0, compensate
    )
    new = np.take_along_axis(table, np.asarray(index), axis=2).astype(np.int64)
    distortion = float((np.asarray(stats.importance, np.float64) * np.asarray(error, np.float64)).sum() / 2)
    n_bytes = -(-codes.size * width // 8) + (len(channels) << width) + HEADER_BYTES + ENTRY_BYTES
    return QuantizedLayer(new, np.zeros((groups, rows), np.int64), distortion, 8.0 * n_bytes, (span / (1 << width),))


@partial(jax.jit, static_argnames="k")
def _groups(points: jax.Array, mass: jax.Array, k: int) -> jax.Array:
    return jax.lax.map(lambda m: optimal_groups(points, m, k), mass, batch_size=32)


def _means(points: np.ndarray, mass: np.ndarray, group: np.ndarray, k: int) -> np.ndarray:
    """``[k]`` rounded means of groups; empty ones repeat the value before."""
    total = np.bincount(group, mass, k)
    means = np.bincount(group, mass * points, k) / np.where(total > 0, total, 1)
    means = np.where(total > 0, means, points[0])
    return np.rint(np.maximum.accumulate(means))
