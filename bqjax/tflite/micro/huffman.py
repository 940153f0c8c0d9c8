"""Huffman codes with the tables that TFLM's kernel walks: one for the first bits of a codeword, others for what follows.

A group of bits is looked up in a table of 2^bits entries. An entry has found a value, and says how many bits of the group belong to
it; or it points forward to the next table, and says how many bits that one takes. Tables are chosen such that they are smallest.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from bqjax.codec.huffman import code_lengths
from bqjax.tflite.micro.encoded import Encoded, ancillary, checked_size

__all__ = ["MAX_CODE_BITS", "decode_huffman", "encode_huffman", "huffman_bytes"]

MAX_CODE_BITS = 15
"""Of a codeword: the field that counts bits has 4."""
_MAX_GROUP = 16
_MOST_LEVELS = 64  # tables that a codeword of a file may go through
_CHUNK = 1 << 18  # bits of a stream that are decoded at once


class _Table(NamedTuple):
    """Tables for the leaves ``[low, high)`` of a code, of which ``depth`` bits are known."""

    cost: float
    width: int
    children: tuple[tuple[int, int, int], ...]


class _Code:
    """A canonical prefix code: leaves in order of their codewords.

    Args:
      lengths: ``[leaves]`` bits, ascending.
      shares: ``[leaves]`` of all symbols.
    """

    def __init__(self, lengths: np.ndarray, shares: np.ndarray):
        self.lengths, self.shares = lengths.tolist(), shares.tolist()
        span = 1 << (MAX_CODE_BITS - lengths.astype(np.int64))
        self.starts = (np.cumsum(span) - span).tolist()  # codewords, in their first 15 bits
        self.table = cache(self._table)

    def _groups(self, low: int, high: int, depth: int) -> Iterator[tuple[int, int]]:
        """Runs of leaves that share their first ``depth`` bits."""
        first = low
        for i in range(low + 1, high + 1):
            if i == high or self.starts[i] >> (MAX_CODE_BITS - depth) != self.starts[first] >> (MAX_CODE_BITS - depth):
                yield first, i
                first = i

    def with_width(self, low: int, high: int, depth: int, width: int) -> _Table:
        """A table of that many bits, and the best of those that it leads to."""
        cost = float(1 << width)
        children = []
        for first, end in self._groups(low, high, depth + width) if depth + width < MAX_CODE_BITS else ():
            if self.lengths[first] > depth + width:
                children.append((first, end, depth + width))
                # A hundredth of an entry for each look-up: of tables of one size, those with the fewest.
                cost += self.table(first, end, depth + width).cost + 0.01 * sum(self.shares[first:end])
        return _Table(cost, width, tuple(children))

    def _table(self, low: int, high: int, depth: int) -> _Table:
        longest = self.lengths[high - 1] - depth
        return min((self.with_width(low, high, depth, w) for w in range(1, min(longest, 10) + 1)), key=lambda table: table.cost)


def _tables(code: _Code, root_bits: int | None) -> tuple[list[tuple[int, int, int, _Table]], float]:
    """All tables in order (leaves, depth, table), and look-ups a value on average."""
    n = len(code.lengths)
    first = code.table(0, n, 0) if root_bits is None else code.with_width(0, n, 0, root_bits)
    found, lookups, i = [(0, n, 0, first)], 1.0, 0
    while i < len(found):
        for low, high, depth in found[i][3].children:
            lookups += sum(code.shares[low:high])
            found.append((low, high, depth, code.table(low, high, depth)))
        i += 1
    return found, lookups


def _entries(code: _Code, symbols: np.ndarray, tables: list[tuple[int, int, int, _Table]], wide: bool) -> np.ndarray:
    flag, shift = (31, 27) if wide else (15, 11)
    starts = np.cumsum([0, *(1 << table.width for *_, table in tables)]).tolist()
    entries = np.zeros(starts[-1], np.uint32)
    child = 1
    for (low, high, depth, table), start in zip(tables, starts, strict=False):
        prefix = code.starts[low] >> (MAX_CODE_BITS - depth)
        for i in range(low, high):
            left = code.lengths[i] - depth
            if left <= table.width:
                code_bits = code.starts[i] >> (MAX_CODE_BITS - code.lengths[i])
                at = start + ((code_bits - (prefix << left)) << (table.width - left))
                entries[at : at + (1 << (table.width - left))] = 1 << flag | left << shift | int(symbols[i])
        for first, _, deeper in table.children:
            at = start + (code.starts[first] >> (MAX_CODE_BITS - deeper)) - (prefix << table.width)
            if starts[child] - at >= 1 << shift:
                raise ValueError(f"tables of 16-bit entries reach {(1 << shift) - 1} entries forward: write 32-bit ones (wide)")
            entries[at] = (tables[child][3].width - 1) << shift | starts[child] - at
            child += 1
    return entries.astype("<u4" if wide else "<u2")


def encode_huffman(codes: np.ndarray, root_bits: int | None = None, *, wide: bool | None = None) -> Encoded:
    """The values of a tensor by a Huffman code of its own.

    Args:
      codes: the tensor, of 8 or 16 bits.
      root_bits: of the first table, 1 to 16: more are decoded faster. None takes what makes the tables smallest.
      wide: whether entries have 32 bits in place of 16, which values of 16 bits need; None has it where needed.

    Raises:
      ValueError: the tables reach too far for 16-bit entries; more values than codewords of 15 bits.
    """
    if root_bits is not None and not 1 <= root_bits <= _MAX_GROUP:
        raise ValueError(f"a first table of {root_bits} bits: kernels know 1 to {_MAX_GROUP}")
    flat = codes.reshape(-1)
    wide = codes.dtype.itemsize > 1 if wide is None else wide
    values, index, counts = np.unique(flat, return_inverse=True, return_counts=True)
    lengths = code_lengths(counts, MAX_CODE_BITS).astype(np.int64)
    order = np.argsort(lengths, kind="stable")
    code = _Code(lengths[order], counts[order] / flat.size)
    tables, lookups = _tables(code, root_bits)
    symbols = values[order].view(np.dtype(f"u{codes.dtype.itemsize}"))
    entries = _entries(code, symbols, tables, wide)
    codewords = np.zeros(len(values), np.int64)
    codewords[order] = np.array(code.starts) >> (MAX_CODE_BITS - lengths[order])
    total = int((counts * lengths).sum())
    stream = np.zeros(-(-(total + max(table.width for *_, table in tables)) // 32) * 32, np.uint8)
    own = lengths[index]
    ends = np.cumsum(own)
    for bit in range(1, int(lengths.max()) + 1):
        has = own >= bit
        stream[ends[has] - bit] = codewords[index[has]] >> (bit - 1) & 1
    header = (tables[0][3].width - 1) << 4 | int(wide)
    data = np.packbits(stream).tobytes()
    return Encoded("huffman", data, ancillary("huffman", header, 0, entries.tobytes()), len(values), total / flat.size, lookups)


def huffman_bytes(counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Bits of each value's codeword, and about the bytes that a tensor takes (data and ancillary tensor), from counts ``[k]``."""
    lengths = code_lengths(counts, MAX_CODE_BITS).astype(np.int64)
    used = np.flatnonzero(lengths)
    order = used[np.argsort(lengths[used], kind="stable")]
    code = _Code(lengths[order], counts[order] / counts.sum())
    tables, _ = _tables(code, None)
    return lengths, int((counts * lengths).sum()) // 8 + 4 + 16 + 2 * sum(1 << table.width for *_, table in tables)


def decode_huffman(data: bytes, first: int, payload: bytes, n: int, dtype: np.dtype) -> np.ndarray:
    """``[n]`` values.

    Args:
      data: the stream.
      first: byte 5 of the ancillary tensor's header.
      payload: its tables.
      n: number of values.
      dtype: theirs, of 8 or 16 bits.

    Raises:
      ValueError: a codeword that no table has, or a stream that ends too early.
    """
    checked_size(n, 1, data)
    wide = first & 1
    entries = np.frombuffer(payload, "<u4" if wide else "<u2", len(payload) // (4 if wide else 2)).astype(np.int64)
    flag, shift = (31, 27) if wide else (15, 11)
    found, count, value = entries >> flag & 1, entries >> shift & 15, entries & ((1 << shift) - 1)
    out, total, position, done = np.empty(n, np.int64), 8 * len(data), 0, 0
    octets = np.frombuffer(data + bytes(8), np.uint8).astype(np.int64)
    while done < n:
        # Codewords from every bit of a chunk on, of which only those are taken that begin where the last one ends.
        size = min(_CHUNK, total - position)
        if size <= 0:
            raise ValueError(f"the Huffman stream ends after {done:,} of {n:,} values: the file is damaged")
        symbols, lengths = _codewords(octets, position, size, ((first >> 4) + 1, found, count, value))
        steps, at, taken = lengths.tolist(), 0, list[int]()
        while at < size and done + len(taken) < n:
            if not steps[at]:
                raise ValueError(f"the Huffman code has no codeword as at bit {position + at} of the stream: the file is damaged")
            taken.append(at)
            at += steps[at]
        out[done : done + len(taken)] = symbols[taken]
        done, position = done + len(taken), position + at
    if position > total:
        raise ValueError("the Huffman stream ends within its last value: the file is damaged")
    return out.astype(f"u{dtype.itemsize}").view(dtype)


def _codewords(
    octets: np.ndarray, start: int, size: int, tables: tuple[int, np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Value and length of the codeword at each of ``size`` bits from ``start`` on; length 0 where there is none."""
    width, found, count, value = tables
    symbols, lengths = np.zeros(size, np.int64), np.zeros(size, np.int64)
    here, at = np.arange(size), start + np.arange(size)  # those under way, and where their next group begins
    base, widths = np.zeros(size, np.int64), np.full(size, width)
    for _ in range(_MOST_LEVELS):
        byte = at >> 3
        inside = byte < len(octets) - 3
        here, at, base, widths, byte = here[inside], at[inside], base[inside], widths[inside], byte[inside]
        window = octets[byte] << 16 | octets[byte + 1] << 8 | octets[byte + 2]
        entry = base + (window >> (24 - (at & 7) - widths) & ((1 << widths) - 1))
        valid = entry < len(found)
        here, at, widths, entry = here[valid], at[valid], widths[valid], entry[valid]
        hit = (found[entry] == 1) & (count[entry] <= widths) & (count[entry] > 0)
        symbols[here[hit]] = value[entry[hit]]
        lengths[here[hit]] = at[hit] + count[entry[hit]] - start - here[hit]
        on = (found[entry] == 0) & (value[entry] > 0)
        if not on.any():
            break
        here, at, entry = here[on], at[on] + widths[on], entry[on]
        base, widths = entry + value[entry], count[entry] + 1
    return symbols, lengths
