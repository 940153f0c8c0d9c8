"""What decoding costs: about the time of TFLM's reference kernels, measured a value on one x86 core at some 3 GHz.

Xtensa cores have kernels of their own: what is slow here is slow there, not by the same factor.
"""

from __future__ import annotations

from bqjax.tflite.micro.encoded import Encoded

__all__ = ["decode_ns"]

_LUT_NS = (1.1, 0.3, 0.3, 0.3, 2.5, 1.8, 4.5)  # by bits of an index: those of 2 to 4 bits are unrolled
_LUT_LAST_NS = 2.0  # a table for each entry of the last dimension
_HUFFMAN_NS, _LOOKUP_NS = 1.5, 3.0
_PRUNING_NS = 2.0


def decode_ns(encoded: Encoded, n: int) -> float:
    """Nanoseconds to decode a tensor of ``n`` values."""
    if encoded.kind == "pruning":
        return _PRUNING_NS * n
    if encoded.kind == "huffman":
        return (_HUFFMAN_NS + _LOOKUP_NS * encoded.lookups) * n
    axis, bits = encoded.ancillary[5] >> 4, encoded.ancillary[5] & 15
    return n * (_LUT_LAST_NS if axis not in (0, 15) else _LUT_NS[bits - 1])
