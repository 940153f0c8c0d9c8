"""Entropy coders for the integer codes of one leaf.

============  ===================================================================================================
``raw``       bit array of ``ceil(log2 k)`` bits a symbol (:mod:`bqjax.codec.bitpack`)
``zstd``      zstandard, level 19, of symbols of 1, 2 or 4 bytes: finds repetitions, which the others do not look for
``ans``       asymmetric numeral systems with the leaf's own symbol frequencies: within 0.5 % of the entropy
``huffman``   canonical Huffman code of the leaf's own frequencies (:mod:`bqjax.codec.huffman`)
``adaptive``  the same numeral systems without a table, by the symbols so far (:mod:`bqjax.codec.adaptive`)
``auto``      the smallest of these
============  ===================================================================================================

A stream does not say how long it is, how many symbols it holds or out of how many: the container does. Two rules
hold for every stream, so that a reader can judge a claimed number of symbols by the bytes that are there, before it
allocates anything: ``n`` symbols take at least ``ceil(n / 1024)`` bytes (shorter streams are filled up with zero
bytes; 0.008 bits a symbol at most), and no symbols take no bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np
import zstandard

from bqjax.codec import adaptive, bitpack, huffman
from bqjax.core.leaves import index_dtype

__all__ = [
    "CODERS",
    "MODEL_LIMIT",
    "SYMBOLS_PER_BYTE",
    "count_symbols",
    "decode",
    "encode",
    "min_bytes",
    "unzstd",
    "zstd",
    "zstd_size",
]

CODERS = ("raw", "zstd", "ans", "huffman", "adaptive")
_TABLED = ("ans", "huffman", "adaptive")  # that count symbols
SYMBOLS_PER_BYTE = 1024

MODEL_LIMIT = 1 << 16  # kinds of symbols that a frequency table is kept for
_CHUNK = 1 << 20
_ZSTD_LEVEL = 19
_ZSTD_MAX_WINDOW = 1 << 23  # what level 19 uses at most


def min_bytes(n: int) -> int:
    """The fewest bytes that a stream of ``n`` symbols has: ``ceil(n / 1024)``."""
    return -(-n // SYMBOLS_PER_BYTE)


def zstd(data: bytes | memoryview, *, level: int = _ZSTD_LEVEL, checksum: bool = False) -> bytes:
    """One zstandard frame that states the size of its content."""
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=True).compress(data)


def zstd_size(data: bytes | memoryview) -> int:
    """Bytes of content that the zstandard frame at the start of ``data`` states.

    Raises:
      ValueError: not a zstandard frame, one that does not say, or one that asks for a window beyond 8 MB.
    """
    try:
        frame = zstandard.get_frame_parameters(bytes(data[:18]))  # 18 bytes: the longest frame header
    except zstandard.ZstdError as error:
        raise ValueError(f"not zstandard data ({error})") from error
    if frame.content_size >= zstandard.CONTENTSIZE_ERROR or frame.window_size > max(_ZSTD_MAX_WINDOW, frame.content_size):
        raise ValueError("a zstandard frame that does not state its size, or asks for too much memory")
    return frame.content_size


def unzstd(data: bytes | memoryview, size: int) -> bytes:
    """Content of the zstandard frame that ``data`` begins with.

    Args:
      data: the frame; anything may follow it.
      size: bytes of the content. A frame that states another size is refused before anything is allocated.

    Raises:
      ValueError: not a frame of that size, or a damaged one.
    """
    stated = zstd_size(data)
    if stated != size:
        raise ValueError(f"zstandard data of {size} bytes was expected, the frame states {stated}")
    if not size:
        return b""
    try:
        content = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged zstandard data ({error})") from error
    if len(content) != size:
        raise ValueError(f"zstandard data of {size} bytes was expected, got {len(content)}")
    return content


def encode(
    symbols: np.ndarray, k: int, coder: str = "auto", earlier: np.ndarray | None = None, breaks: Sequence[int] = ()
) -> tuple[str, bytes]:
    """Encodes the codes of one leaf.

    Args:
      symbols: integers in ``[0, k)``, any shape, taken in C order.
      k: how many kinds of symbols there may be, 1 to ``2**32``.
      coder: one of the table above. Where one that counts cannot do it (more than 65,536 kinds) or there is nothing to code
        (``k = 1``), ``"raw"`` takes its place.
      earlier: ``[k]`` numbers of occurrences in earlier leaves of the group, which ``"adaptive"`` may start from.
      breaks: positions from which on frequencies are others, rising, inside the stream; ``"adaptive"`` looks at them.

    Returns:
      The coder used, never ``"auto"``, and its bytes.

    Raises:
      ValueError: an unknown coder, symbols that are not integers or not below ``k``.

    Example:
      >>> coder, data = encode(np.array([0, 1, 1, 3], np.uint8), 4, "raw")
      >>> decode(data, 4, 4, coder).tolist()
      [0, 1, 1, 3]
    """
    if coder not in (*CODERS, "auto"):
        raise ValueError(f"unknown coder {coder!r}: choose from {', '.join(CODERS)}, auto")
    _check_kinds(k)
    symbols = np.asarray(symbols).reshape(-1)
    if symbols.dtype.kind not in "ui":
        raise ValueError(f"symbols must be integers, got {symbols.dtype}")
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < k:
        raise ValueError(f"symbols must lie in [0, {k}), got {int(symbols.min())} to {int(symbols.max())}")
    symbols = symbols.astype(index_dtype(k), copy=False)
    if not symbols.size or k == 1 or (coder in _TABLED and k > MODEL_LIMIT):
        coder = "raw"

    def encoded(name: str) -> bytes:
        data = adaptive.encode_payload(symbols, k, earlier, breaks) if name == "adaptive" else _ENCODERS[name](symbols, k)
        return data.ljust(min_bytes(symbols.size), b"\0")

    if coder != "auto":
        return coder, encoded(coder)
    usable = CODERS if k <= MODEL_LIMIT else ("raw", "zstd")
    candidates = ((name, encoded(name)) for name in usable)
    return min(candidates, key=lambda named: len(named[1]))


def decode(
    data: bytes | memoryview, n: int, k: int, coder: str, earlier: np.ndarray | None = None, breaks: Sequence[int] = ()
) -> np.ndarray:
    """Inverse of :func:`encode`.

    Whatever the bytes are, the answer is ``n`` symbols below ``k`` or one ``ValueError``, and no more memory is taken
    than ``n`` symbols and a frequency table of ``k`` entries need.

    Args:
      data: the stream.
      n: number of symbols.
      k: kinds of symbols.
      coder: the coder that :func:`encode` used.
      earlier, breaks: what it was given.

    Returns:
      ``[n]`` symbols of ``index_dtype(k)``.

    Raises:
      ValueError: an unknown coder, too few bytes for ``n`` symbols, or a stream that the coder did not write. ``ans`` and
        ``adaptive`` find a meaning in almost every stream; distortion there is the checksum's to find.
    """
    if coder not in CODERS:
        raise ValueError(f"unknown coder {coder!r}: choose from {', '.join(CODERS)}")
    _check_kinds(k)
    data = memoryview(data).cast("B")
    if n < 0 or len(data) < min_bytes(n) or (not n and len(data)):
        raise ValueError(f"{n} symbols cannot have {len(data)} bytes: a stream has at least one byte per {SYMBOLS_PER_BYTE}")
    if not n or k == 1:
        return np.zeros(n, index_dtype(k))
    if coder in _TABLED and k > MODEL_LIMIT:
        raise ValueError(f"{coder} streams have at most {MODEL_LIMIT} kinds of symbols, not {k}")
    symbols = adaptive.decode_payload(data, n, k, earlier, breaks) if coder == "adaptive" else _DECODERS[coder](data, n, k)
    if int(symbols.max()) >= k:
        raise ValueError(f"symbol {int(symbols.max())} in a stream of {k} kinds")
    return symbols


def _check_kinds(k: int) -> None:
    if not 1 <= k <= 1 << 32:
        raise ValueError(f"the number of kinds must be between 1 and 2**32, got {k}")


def count_symbols(symbols: np.ndarray, k: int) -> np.ndarray:
    """``[k]`` numbers of occurrences, piecewise: bincount makes eight-byte integers of what it counts."""
    counts = np.zeros(k, np.int64)
    for start in range(0, symbols.size, _CHUNK):
        counts += np.bincount(symbols[start : start + _CHUNK], minlength=k)
    return counts


def _encode_raw(symbols: np.ndarray, k: int) -> bytes:
    return bitpack.pack(symbols, bitpack.symbol_bits(k))


def _decode_raw(data: memoryview, n: int, k: int) -> np.ndarray:
    return bitpack.unpack(data, n, bitpack.symbol_bits(k))


def _encode_zstd(symbols: np.ndarray, k: int) -> bytes:
    little = index_dtype(k).newbyteorder("<")
    return zstd(np.ascontiguousarray(symbols, little).view(np.uint8).data)


def _decode_zstd(data: memoryview, n: int, k: int) -> np.ndarray:
    dtype = index_dtype(k)
    return np.frombuffer(unzstd(data, n * dtype.itemsize), dtype.newbyteorder("<")).astype(dtype, copy=False)


# Tables: one unsigned number for each of the k kinds. The first byte's bit 0 says that entries have two bytes (all low
# bytes, then all high ones), bit 1 that they are a zstandard frame, whose length then follows in four bytes.


def _encode_table(table: np.ndarray) -> bytes:
    wide = table.dtype.itemsize - 1
    plain = table.astype(table.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, wide + 1).T.tobytes()
    small = zstd(plain)
    if len(small) + 4 < len(plain):
        return bytes([wide | 2]) + struct.pack("<I", len(small)) + small
    return bytes([wide]) + plain


def _decode_table(data: memoryview, k: int) -> tuple[np.ndarray, memoryview]:
    """The table and what follows it."""
    if data[0] > 3:
        raise ValueError(f"unknown kind {data[0]} of frequency table")
    width, compressed = 1 + (data[0] & 1), data[0] & 2
    head = 5 if compressed else 1
    end = head + (int.from_bytes(data[1:5], "little") if compressed else k * width)
    if end > len(data):
        raise ValueError(f"the stream ends within its frequency table: {len(data)} bytes of {end}")
    plain = unzstd(data[head:end], k * width) if compressed else bytes(data[head:end])
    planes = np.frombuffer(plain, np.uint8).reshape(width, k)
    table = planes[0] if width == 1 else planes[0].astype(np.uint16) | planes[1].astype(np.uint16) << np.uint16(8)
    return table, data[end:]


# Frequencies are kept like floating-point numbers with m bits behind the leading one: 3 in a byte, 11 in two bytes.


def _quantize(counts: np.ndarray, m: int) -> np.ndarray:
    """Codes of positive counts below ``2**31``, rounded to ``m + 1`` significant bits; 0 stays 0."""
    counts = counts.astype(np.int64)
    shift = np.maximum(np.frexp(counts.astype(np.float64))[1] - (m + 1), 0).astype(np.int64)
    return (((counts + ((np.int64(1) << shift) >> 1)) >> shift) + (shift << m)).astype(np.uint8 if m == 3 else np.uint16)


def _dequantize(codes: np.ndarray, m: int) -> np.ndarray:
    codes = codes.astype(np.int64)
    shift = np.maximum((codes >> m) - 1, 0)
    return (codes - (shift << m)) << shift


def _mantissa(table: np.ndarray) -> int:
    return 3 if table.dtype.itemsize == 1 else 11


def _model(frequencies: np.ndarray) -> Any:
    # perfect=False needs sums of integers and one division only, which float64 does the same on every machine.
    return constriction.stream.model.Categorical(frequencies.astype(np.float64), perfect=False)


def _encode_ans(symbols: np.ndarray, k: int) -> bytes:
    counts = count_symbols(symbols, k)
    used = np.flatnonzero(counts)
    scaled = np.maximum(counts >> max(int(counts.max()).bit_length() - 31, 0), counts > 0)
    options = []
    for m in (3, 11):
        codes = _quantize(scaled, m)
        frequencies = _dequantize(codes, m)[used]
        table = _encode_table(codes)
        bits = float(-(counts[used] @ np.log2(frequencies / frequencies.sum())))
        options.append((len(table) + bits / 8, table, frequencies))
    _, table, frequencies = min(options, key=lambda option: option[0])
    if used.size == 1:
        return table

    model, coder = _model(frequencies), constriction.stream.stack.AnsCoder()
    rank = np.zeros(k, np.int32)
    rank[used] = np.arange(used.size, dtype=np.int32)
    for start in reversed(range(0, symbols.size, _CHUNK)):  # a stack: what goes in last comes out first
        coder.encode_reverse(rank[symbols[start : start + _CHUNK]], model)
    # The last word is never zero, so that zero bytes at the end carry nothing.
    return table + coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def _decode_ans(data: memoryview, n: int, k: int) -> np.ndarray:
    table, data = _decode_table(data, k)
    frequencies = _dequantize(table, _mantissa(table))
    used = np.flatnonzero(frequencies).astype(index_dtype(k))
    if not used.size:
        raise ValueError("the frequency table is empty")
    if used.size == 1:
        return np.full(n, used[0])
    payload = bytes(data).rstrip(b"\0")
    words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
    model, coder = _model(frequencies[used]), constriction.stream.stack.AnsCoder(words)
    out = np.empty(n, index_dtype(k))
    for start in range(0, n, _CHUNK):
        part = out[start : start + _CHUNK]
        part[:] = used[coder.decode(model, part.size)]
    if not coder.is_empty():
        raise ValueError(f"the ans stream does not end after {n} symbols")
    return out


def _encode_huffman(symbols: np.ndarray, k: int) -> bytes:
    counts = count_symbols(symbols, k)
    lengths = huffman.code_lengths(counts)
    table = _encode_table(lengths)
    if np.count_nonzero(counts) == 1:
        return table
    return table + huffman.encode_payload(symbols, lengths, int(counts @ lengths.astype(np.int64)))


def _decode_huffman(data: memoryview, n: int, k: int) -> np.ndarray:
    lengths, data = _decode_table(data, k)
    if lengths.dtype != np.uint8:
        raise ValueError("Huffman code lengths have one byte each")
    used = np.flatnonzero(lengths)
    if used.size == 1:
        return np.full(n, used[0], index_dtype(k))
    return huffman.decode_payload(data, n, lengths, index_dtype(k))


_ENCODERS = {"raw": _encode_raw, "zstd": _encode_zstd, "ans": _encode_ans, "huffman": _encode_huffman}
_DECODERS = {"raw": _decode_raw, "zstd": _decode_zstd, "ans": _decode_ans, "huffman": _decode_huffman}
