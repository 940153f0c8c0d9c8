"""A weight tensor in one of the encodings of TFLM's operator DECODE: its data, and the ancillary tensor that says how to read them.

The ancillary tensor begins with 16 bytes: type, version 1, two zeros, 1, two bytes of the encoding's own, zeros.
Source: tensorflow/lite/micro/kernels/decode*.cc of tflite-micro.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["KINDS", "Encoded", "Kind", "ancillary", "bit_groups", "checked_size", "parse_ancillary"]

Kind = Literal["lut", "huffman", "pruning"]
KINDS: tuple[Kind, ...] = ("lut", "huffman", "pruning")
"""Encodings by their number in the header."""

HEADER_BYTES = 16
_ALIGN = 16


@dataclass(frozen=True)
class Encoded:
    """An encoded tensor.

    Attributes:
      kind: which encoding.
      data: what is decoded.
      ancillary: header and tables.
      values: how many different values the tensor has.
      bits: about a value, of the data alone.
      lookups: in tables, a value on average.
    """

    kind: Kind
    data: bytes
    ancillary: bytes
    values: int
    bits: float
    lookups: float = 1.0

    @property
    def n_bytes(self) -> int:
        """Bytes of both constants where each begins at a multiple of 16, with their lengths."""
        return sum(-(-len(part) // _ALIGN) * _ALIGN + 4 for part in (self.data, self.ancillary))


def ancillary(kind: Kind, first: int, second: int, payload: bytes) -> bytes:
    """An ancillary tensor; ``first`` and ``second`` are the bytes 5 and 6 of its header."""
    return bytes([KINDS.index(kind), 1, 0, 0, 1, first, second]).ljust(HEADER_BYTES, b"\0") + payload


def parse_ancillary(content: bytes) -> tuple[Kind, int, int, bytes]:
    """Encoding, bytes 5 and 6 of the header, and payload.

    Raises:
      ValueError: it is none of this version.
    """
    if len(content) < HEADER_BYTES:
        raise ValueError(f"an ancillary tensor of {len(content)} bytes, its header alone has {HEADER_BYTES}: the file is damaged")
    if content[1] != 1 or content[0] >= len(KINDS):
        raise ValueError(f"encoding {content[0]} of version {content[1]} is not known: versions 1 of {', '.join(KINDS)} are")
    return KINDS[content[0]], content[5], content[6], content[HEADER_BYTES:]


def checked_size(n: int, bits: int, data: bytes) -> None:
    """Raises ``ValueError`` where ``n`` values of at least so many bits do not fit the data: before anything is allocated."""
    if not 0 <= n * bits <= 8 * len(data):
        raise ValueError(f"{n:,} values of at least {bits} bits do not fit {len(data):,} bytes: the file is damaged")


def bit_groups(data: bytes, n: int, bits: int) -> np.ndarray:
    """``[n]`` numbers of so many bits each (at most 8), most significant bit first, one directly after the other."""
    checked_size(n, bits, data)
    found = np.unpackbits(np.frombuffer(data, np.uint8, -(-n * bits // 8)), count=n * bits).reshape(n, bits)
    padded = np.zeros((n, 8), np.uint8)
    padded[:, 8 - bits :] = found
    return np.packbits(padded, axis=1)[:, 0]
