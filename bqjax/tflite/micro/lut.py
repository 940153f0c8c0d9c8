"""Look-up tables: indices of 1 to 7 bits into one table of values, or into one a channel."""

from __future__ import annotations

import numpy as np

from bqjax.codec.bitpack import symbol_bits
from bqjax.tflite.micro.encoded import Encoded, ancillary, bit_groups

__all__ = ["MAX_VALUES", "decode_lut", "encode_lut"]

MAX_VALUES = 128
_ONE_TABLE = 15  # in place of an axis


def encode_lut(codes: np.ndarray, axis: int | None = None) -> Encoded:
    """The values of a tensor as indices of the fewest bits.

    Args:
      codes: the tensor, of 8 or 16 bits.
      axis: a table for each entry of this dimension, the first or the last; None makes one.

    Raises:
      ValueError: more than 128 values in a table, or a dimension in the middle.
    """
    rows = _by_channel(codes, axis)
    tables = [np.unique(row) for row in rows]
    stride = max(len(table) for table in tables)
    if stride > MAX_VALUES:
        raise ValueError(f"{stride} different values: a look-up table holds at most {MAX_VALUES}; give the tensor fewer values")
    bits = max(1, symbol_bits(stride))
    indices = np.stack([np.searchsorted(table, row) for table, row in zip(tables, rows, strict=True)])
    filled = [np.pad(table, (0, stride - len(table)), "edge") for table in tables]
    payload = np.concatenate([*filled, np.zeros((1 << bits) - stride, codes.dtype)])
    ordered = _by_channel_inverse(indices, codes.shape, axis).reshape(-1)
    spread = np.unpackbits(ordered.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    header = (_ONE_TABLE if axis is None else axis) << 4 | bits
    return Encoded(
        "lut",
        np.packbits(spread).tobytes(),
        ancillary("lut", header, 0 if axis is None else stride, payload.astype(codes.dtype.newbyteorder("<")).tobytes()),
        len(np.unique(codes)),
        float(bits),
    )


def decode_lut(
    data: bytes, header: tuple[int, int, bytes], shape: tuple[int, ...], dtype: np.dtype, channels: int, axis: int
) -> np.ndarray:
    """The tensor, as TFLM's kernel reads it.

    Args:
      data: indices.
      header: bytes 5 and 6 of the ancillary tensor, and what follows its header.
      shape, dtype: of the tensor.
      channels: scales that the tensor has; more than one mean a table each, where the stride is not 0.
      axis: the dimension of the scales.

    Raises:
      ValueError: the header does not fit the tensor, or the data are too short.
    """
    bits, nibble, stride, payload = header[0] & 15, header[0] >> 4, header[1], header[2]
    if not 1 <= bits <= 7:
        raise ValueError(f"look-up indices of {bits} bits: kernels know 1 to 7")
    if stride > MAX_VALUES:
        raise ValueError(f"a stride of {stride} between look-up tables: kernels know at most {MAX_VALUES}")
    many = channels > 1 and stride > 0
    if many and (nibble != axis or axis not in (0, len(shape) - 1) or shape[axis] != channels):
        raise ValueError(f"{channels} look-up tables along dimension {nibble} of a tensor {shape} with scales along {axis}")
    n_tables = channels if many else 1
    table = np.frombuffer(payload, dtype.newbyteorder("<"), len(payload) // dtype.itemsize)
    if len(table) < (n_tables - 1) * stride + (1 << bits):
        raise ValueError(f"{len(table)} entries of {n_tables} look-up tables of {bits} bits: the file is damaged")
    n = int(np.prod(shape, dtype=np.int64))
    indices = bit_groups(data, n, bits).reshape(shape).astype(np.int64)
    if many:
        indices += (np.arange(channels) * stride).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return table[indices].astype(dtype)


def _by_channel(codes: np.ndarray, axis: int | None) -> np.ndarray:
    if axis is None:
        return codes.reshape(1, -1)
    if axis not in (0, codes.ndim - 1):
        raise ValueError(f"tables along dimension {axis} of {codes.ndim}: kernels know the first and the last; use one table")
    return np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)


def _by_channel_inverse(rows: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    if axis is None:
        return rows.reshape(shape)
    others = shape[:axis] + shape[axis + 1 :]
    return np.moveaxis(rows.reshape(shape[axis], *others), 0, axis)
