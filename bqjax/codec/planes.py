"""Byte-plane coding (lossless floating-point compression): arrays that are stored as they are, in fewer bytes.

The bytes of trained weights differ in what they hold: of a floating-point number the exponent takes few values, the mantissa
nearly all. So entries are taken apart into planes, the first bytes of all entries, the second bytes, and so on, and each plane is
coded by itself. Of floating-point numbers the sign is first moved from the highest bit to the lowest, so that the exponent fills
the highest byte: eight bits of it in float32 and bfloat16.

A stream is cut into pieces of 131,072 entries (the last may be shorter; complex numbers are two entries each). A piece holds its
planes from the lowest to the highest byte, each as four bytes, little-endian, with the length of what follows, and a zstandard
frame of the plane; or the plane itself where its length is that of the plane.

The frames are in effect Huffman codes: zstandard's fastest strategy with matches of at least seven bytes. On exponents of trained
weights this takes 2 to 3 % more than their entropy at five times the speed of the numeral systems of :mod:`bqjax.codec.entropy`
(``benchmarks/lossless.py``).

References:
  Hershcovitch et al., "ZipNN: Lossless compression for AI models", 2024 (arXiv 2411.05239).
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import zstandard

from bqjax.codec import entropy

__all__ = ["decode_planes", "encode_planes"]

_PIECE = 1 << 17  # entries: a plane is one block of zstandard, and a piece stays in the processor's cache
_LENGTH = 4
_HUFFMAN = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, window_log=17, hash_log=6, min_match=7, write_content_size=True, write_checksum=False
)


@functools.lru_cache(64)
def _layout(dtype: np.dtype) -> tuple[int, bool]:
    """Bytes of an entry, and whether it has a sign to move."""
    if dtype.kind == "c":
        return dtype.itemsize // 2, True
    return dtype.itemsize, dtype.itemsize > 1 and bool(jnp.issubdtype(dtype, jnp.floating))


def encode_planes(data: bytes | memoryview, dtype: np.dtype) -> list[bytes | memoryview]:
    """The stream of an array, in parts, so that it is held once.

    Args:
      data: its bytes, little-endian, in C order.
      dtype: of the array.

    Example:
      >>> weights = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
      >>> stream = b"".join(encode_planes(weights.data.cast("B"), weights.dtype))
      >>> len(stream) < 0.85 * weights.nbytes, decode_planes(stream, weights.nbytes, weights.dtype) == weights.tobytes()
      (True, True)
    """
    width, signed = _layout(dtype)
    words = np.frombuffer(data, f"<u{width}")
    compressor = zstandard.ZstdCompressor(compression_params=_HUFFMAN)
    parts: list[bytes | memoryview] = []
    for start in range(0, words.size, _PIECE):
        piece = words[start : start + _PIECE]
        if signed:
            piece = (piece << 1) | (piece >> (8 * width - 1))
        for i in range(width):
            plane = (piece >> 8 * i).astype(np.uint8).data  # half as long again as by the bytes' stride
            small = compressor.compress(plane)
            best = small if len(small) < len(plane) else plane
            parts += [len(best).to_bytes(_LENGTH, "little"), best]
    return parts


def decode_planes(stream: bytes | memoryview, size: int, dtype: np.dtype) -> bytearray:
    """Inverse of :func:`encode_planes`.

    Args:
      stream: what it gave; zero bytes may follow.
      size: bytes of the array.
      dtype: of the array.

    Raises:
      ValueError: a stream that it did not write. Memory beyond the array is that of a piece.
    """
    stream = memoryview(stream).cast("B")
    width, signed = _layout(dtype)
    out = bytearray(size)
    words = np.frombuffer(out, f"<u{width}")
    at = 0
    for start in range(0, words.size, _PIECE):
        piece = words[start : start + _PIECE]
        planes = piece.view(np.uint8).reshape(-1, width)
        for i in range(width):
            length, at = int.from_bytes(stream[at : at + _LENGTH], "little"), at + _LENGTH
            part = stream[at : at + length]
            if not 0 < length <= piece.size or len(part) != length:
                raise ValueError(f"byte plane {i} of entry {start} on claims {length} bytes, {len(part)} of them are there")
            planes[:, i] = np.frombuffer(part if length == piece.size else entropy.unzstd(part, piece.size), np.uint8)
            at += length
        if signed:
            piece[:] = (piece >> 1) | (piece << (8 * width - 1))
    if bytes(stream[at:]).strip(b"\0"):
        raise ValueError(f"the byte planes end after {at} bytes of {len(stream)}")
    return out
