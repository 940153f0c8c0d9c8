"""Pruned weights: a bitmap of those that are present, and their values; the others are the zero point."""

from __future__ import annotations

import numpy as np

from bqjax.tflite.micro.encoded import Encoded, ancillary, checked_size

__all__ = ["decode_pruning", "encode_pruning"]


def encode_pruning(codes: np.ndarray, absent: np.ndarray) -> Encoded:
    """The values that are not ``absent``, with a bitmap.

    Args:
      codes: the tensor.
      absent: of a shape that broadcasts to it: its zero points.
    """
    present = codes != absent
    values = codes[present].astype(codes.dtype.newbyteorder("<"))
    bits = 1 + 8 * values.nbytes / max(1, codes.size)
    data = np.packbits(present).tobytes()
    return Encoded("pruning", data, ancillary("pruning", 0, 0, values.tobytes()), len(np.unique(codes)), bits)


def decode_pruning(data: bytes, payload: bytes, shape: tuple[int, ...], dtype: np.dtype, absent: np.ndarray) -> np.ndarray:
    """The tensor.

    Args:
      data: the bitmap.
      payload: of the ancillary tensor.
      shape, dtype: of the tensor.
      absent: see :func:`encode_pruning`.

    Raises:
      ValueError: the bitmap is too short, or counts more values than there are.
    """
    n = int(np.prod(shape, dtype=np.int64))
    checked_size(n, 1, data)
    present = np.unpackbits(np.frombuffer(data, np.uint8, -(-n // 8)), count=n).astype(bool).reshape(shape)
    values = np.frombuffer(payload, dtype.newbyteorder("<"), len(payload) // dtype.itemsize)
    count = int(present.sum())
    if count > len(values):
        raise ValueError(f"a bitmap of {count:,} values, {len(values):,} are stored: the file is damaged")
    out = np.broadcast_to(absent, shape).astype(dtype)
    out[present] = values[:count]
    return out
