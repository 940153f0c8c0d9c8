"""Bit arrays: symbols of ``b`` bits each, one directly after the other.

This is the plain storage of shared weights: ``nm`` indices into ``k`` values take ``ceil(nm log2 k / 8)`` bytes and
no table. Symbol ``i`` occupies the bits ``[i b, (i + 1) b)``, counted from the least significant bit of the first byte.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["pack", "packed_bytes", "symbol_bits", "unpack"]

_CHUNK = 1 << 18  # groups of eight symbols worked on at a time: bounds the temporary arrays to a few MB


def symbol_bits(k: int) -> int:
    """Bits of a symbol out of ``k``: ``ceil(log2 k)``, and 0 where there is nothing to tell apart.

    >>> [symbol_bits(k) for k in (1, 2, 5, 8, 256, 257)]
    [0, 1, 3, 3, 8, 9]
    """
    if k < 1:
        raise ValueError(f"the number of symbol values must be at least 1, got {k}")
    return (k - 1).bit_length()


def packed_bytes(n: int, b: int) -> int:
    """Bytes of ``n`` symbols of ``b`` bits: ``ceil(n b / 8)``."""
    return (n * b + 7) // 8


def _work_dtype(b: int) -> np.dtype:
    if not 0 <= b <= 32:
        raise ValueError(f"symbols must have 0 to 32 bits, got {b}")
    return np.dtype(np.uint8 if b <= 8 else np.uint16 if b <= 16 else np.uint32)


def _pieces(b: int) -> Iterator[tuple[int, int, int]]:
    """The bytes that each of eight neighbouring symbols touches: (symbol, byte, left shift of the symbol into the byte)."""
    for j in range(8):
        for byte in range(j * b // 8, ((j + 1) * b + 7) // 8):
            yield j, byte, j * b - 8 * byte


def pack(symbols: np.ndarray, b: int) -> bytes:
    """Packs symbols into a bit array.

    Args:
      symbols: ``[n]`` integers in ``[0, 2**b)``; the caller vouches for the range.
      b: bits a symbol, 0 to 32.

    Returns:
      ``ceil(n b / 8)`` bytes; the unused bits of the last one are zero.

    Raises:
      ValueError: ``b`` is out of range.

    Example:
      >>> pack(np.array([1, 2, 3]), 4).hex()
      '2103'
    """
    work = _work_dtype(b)
    symbols = np.asarray(symbols).reshape(-1)
    out = np.zeros((-(-symbols.size // 8), b), np.uint8)  # eight symbols fill exactly b bytes
    for start in range(0, out.shape[0], _CHUNK):
        part = symbols[8 * start : 8 * (start + _CHUNK)].astype(work)
        part = np.pad(part, (0, -part.size % 8)).reshape(-1, 8)
        target = out[start : start + _CHUNK]
        for j, byte, shift in _pieces(b):
            moved = part[:, j] << shift if shift >= 0 else part[:, j] >> -shift
            target[:, byte] |= moved.astype(np.uint8)
    return out.tobytes()[: packed_bytes(symbols.size, b)]


def unpack(data: bytes | memoryview, n: int, b: int) -> np.ndarray:
    """Inverse of :func:`pack`.

    Args:
      data: at least ``ceil(n b / 8)`` bytes.
      n: number of symbols.
      b: bits a symbol, 0 to 32.

    Returns:
      ``[n]`` array of the smallest unsigned type for ``b`` bits.

    Raises:
      ValueError: ``b`` is out of range, or ``data`` is too short. Nothing has been allocated by then.

    Example:
      >>> unpack(bytes.fromhex("2103"), 3, 4).tolist()
      [1, 2, 3]
    """
    work = _work_dtype(b)
    needed = packed_bytes(n, b)
    if len(data) < needed:
        raise ValueError(f"{n} symbols of {b} bits need {needed} bytes, there are {len(data)}")
    source = np.frombuffer(data, np.uint8, needed)
    out = np.zeros(n, work)
    mask = work.type((1 << b) - 1)
    for start in range(0, -(-n // 8), _CHUNK):
        part = source[b * start : b * (start + _CHUNK)]
        groups = min(_CHUNK, -(-n // 8) - start)
        part = np.pad(part, (0, groups * b - part.size)).reshape(groups, b)
        values = np.zeros((groups, 8), work)
        for j, byte, shift in _pieces(b):
            moved = part[:, byte].astype(work)
            values[:, j] |= moved >> shift if shift >= 0 else moved << -shift
        target = out[8 * start : 8 * (start + groups)]
        target[:] = (values & mask).reshape(-1)[: target.size]
    return out
