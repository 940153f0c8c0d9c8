"""Canonical Huffman codes of at most 16 bits, encoded and decoded by whole arrays.

The code is stored as its lengths only: codes of one length are consecutive numbers in symbol order. The symbols are
cut into lanes of :data:`LANE` symbols; a small directory says where each lane's bits begin, so that the decoder can
advance through all lanes in lockstep, one table look-up a symbol, with no loop over single symbols. The directory
takes about 10 bits a lane, 0.005 bits a symbol.
"""

from __future__ import annotations

import struct

import numpy as np

from bqjax.codec import bitpack

__all__ = ["LANE", "MAX_BITS", "code_lengths", "decode_payload", "encode_payload"]

MAX_BITS = 16
LANE = 2048

_LANES_AT_ONCE = 1024
_DIRECTORY = struct.Struct("<HB")  # bits of the shortest lane, bits that each lane's excess takes


def code_lengths(counts: np.ndarray, max_bits: int = MAX_BITS) -> np.ndarray:
    """Lengths of the best prefix code whose codewords have at most ``max_bits`` bits (package-merge).

    Args:
      counts: ``[k]`` non-negative numbers of occurrences.
      max_bits: the longest codeword, in bits.

    Returns:
      ``[k]`` uint8: bits of each symbol's codeword, 0 for symbols that do not occur. A symbol that is alone has 1 bit.

    Raises:
      ValueError: more symbols occur than codewords of ``max_bits`` bits exist.

    References:
      Larmore and Hirschberg, A fast algorithm for optimal length-limited Huffman codes, J. ACM 37(3), 1990.

    Example:
      >>> code_lengths(np.array([8, 4, 2, 0, 2])).tolist()
      [1, 2, 3, 0, 3]
    """
    lengths = np.zeros(len(counts), np.uint8)
    used = np.flatnonzero(counts)
    if used.size <= 1:
        lengths[used] = 1
        return lengths
    if used.size > 1 << max_bits:
        raise ValueError(f"{used.size} symbols occur, codewords of at most {max_bits} bits tell {1 << max_bits} apart")
    order = used[np.argsort(counts[used], kind="stable")]
    weights = np.asarray(counts)[order].astype(np.int64)
    # Level by level, the packages of two from the level below are merged with the symbols themselves.
    levels, packages = [], np.zeros(0, np.int64)
    for _ in range(max_bits):
        merged = np.concatenate([weights, packages])
        by_weight = np.argsort(merged, kind="stable")
        merged = merged[by_weight]
        levels.append(by_weight < weights.size)
        packages = merged[: merged.size // 2 * 2].reshape(-1, 2).sum(1)
    # The 2 (n - 1) lightest items of the top level make the code; a symbol's length is how often it is among them.
    taken = 2 * (used.size - 1)
    for is_symbol in reversed(levels):
        n_symbols = int(np.count_nonzero(is_symbol[:taken]))
        lengths[order[:n_symbols]] += 1
        taken = 2 * (taken - n_symbols)
    return lengths


def _canonical(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Symbols in code order, their codewords left-aligned to the longest length, and that length. Checks the code."""
    used = np.flatnonzero(lengths)
    longest = int(lengths.max(initial=0))
    if used.size < 2 or longest > MAX_BITS:
        raise ValueError(f"a Huffman code of {used.size} symbols with codewords of up to {longest} bits is not one")
    order = used[np.argsort(lengths[used], kind="stable")]
    span = np.int64(1) << (longest - lengths[order].astype(np.int64))
    ends = np.cumsum(span)
    if ends[-1] != 1 << longest:
        raise ValueError("the Huffman code lengths do not make a complete prefix code")
    return order, ends - span, longest


def encode_payload(symbols: np.ndarray, lengths: np.ndarray, total: int) -> bytes:
    """Codewords of all symbols, most significant bit first, after the directory of the lanes.

    Args:
      symbols: ``[n]`` unsigned integers, ``n >= 1``, each with a codeword.
      lengths: ``[k]`` from :func:`code_lengths`, of at least two symbols that occur.
      total: bits of all codewords together.
    """
    order, aligned, longest = _canonical(lengths)
    codes = np.zeros(len(lengths), np.uint64)
    codes[order] = aligned.astype(np.uint64) >> (longest - lengths[order]).astype(np.uint64)
    wide_lengths = lengths.astype(np.int64)

    out = np.zeros(total // 8 + 16, np.uint8)
    lane_bits = []
    position = 0
    chunk = 64 * LANE
    for start in range(0, symbols.size, chunk):
        part = symbols[start : start + chunk]
        code, bits = codes[part], wide_lengths[part]
        code, bits = (np.pad(x, (0, -part.size % LANE)) for x in (code, bits))
        lane_bits.append(bits.reshape(-1, LANE).sum(1))
        width = longest
        while width <= 16:  # join neighbours while two fit into 32 bits: fewer items to place
            code = (code[0::2] << bits[1::2].astype(np.uint64)) | code[1::2]
            bits = bits[0::2] + bits[1::2]
            width *= 2
        ends = np.cumsum(bits) + position % 8
        begins = ends - bits
        word = begins >> 5
        placed = code << (64 - (begins & 31) - bits).astype(np.uint64)
        # Bits of different symbols never overlap, so sums are unions; sums below 2**53 are exact in float64.
        n_words = int(ends[-1] >> 5) + 2
        words = np.bincount(word, placed >> np.uint64(32), n_words)
        words[1:] += np.bincount(word, placed & np.uint64(0xFFFFFFFF), n_words)[:-1]
        octets = words.astype(">u4").view(np.uint8)
        first = position // 8
        span = min(octets.size, out.size - first)
        out[first : first + span] |= octets[:span]
        position += int(ends[-1]) - position % 8
    payload = out[: (total + 7) // 8].tobytes()

    directory = np.concatenate(lane_bits)[:-1]  # the last lane ends where the payload does
    if not directory.size:
        return payload
    shortest = int(directory.min())
    width = bitpack.symbol_bits(int(directory.max()) - shortest + 1)
    return _DIRECTORY.pack(shortest, width) + bitpack.pack(directory - shortest, width) + payload


def _lane_starts(data: memoryview, n: int, fewest: int) -> tuple[np.ndarray, memoryview]:
    """Bit positions where the lanes begin, with the end of the payload, and the payload.

    ``fewest`` is the bits of the shortest codeword: lanes that are too short for their symbols are refused here, so
    that the time to decode is bounded by the bytes there are.
    """
    if n * fewest > 8 * len(data):
        raise ValueError(f"{n} codewords of at least {fewest} bits do not fit into {len(data)} bytes")
    inner = -(-n // LANE) - 1
    if not inner:
        return np.array([0, 8 * len(data)]), data
    if len(data) < _DIRECTORY.size:
        raise ValueError("the Huffman stream ends within its directory")
    shortest, width = _DIRECTORY.unpack(data[: _DIRECTORY.size])
    if width > 16:
        raise ValueError(f"the Huffman directory has entries of {width} bits")
    data = data[_DIRECTORY.size :]
    lane_bits = bitpack.unpack(data, inner, width).astype(np.int64) + shortest
    data = data[bitpack.packed_bytes(inner, width) :]
    starts = np.concatenate([[0], np.cumsum(lane_bits), [8 * len(data)]])
    if starts[-2] > starts[-1] or int(lane_bits.max()) > LANE * MAX_BITS:
        raise ValueError("the Huffman directory points beyond the stream")
    return starts, data


def decode_payload(data: memoryview, n: int, lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Inverse of :func:`encode_payload`.

    Args:
      data: the bytes; zero bytes may follow.
      n: number of symbols, at least 1.
      lengths: ``[k]`` uint8.
      dtype: type of the symbols.

    Returns:
      ``[n]`` symbols.

    Raises:
      ValueError: the lengths make no complete code, or a lane does not end where the next one begins.
    """
    order, _, longest = _canonical(lengths)
    span = np.int64(1) << (longest - lengths[order].astype(np.int64))
    symbol_at = np.repeat(order.astype(dtype), span)
    length_at = np.repeat(lengths[order].astype(np.int64), span)
    starts, data = _lane_starts(data, n, int(length_at.min()))
    source = np.frombuffer(data, np.uint8)

    out = np.empty(n, dtype)
    n_lanes = starts.size - 1
    for lane in range(0, n_lanes, _LANES_AT_ONCE):
        begins = starts[lane : min(lane + _LANES_AT_ONCE, n_lanes)]
        ends = starts[lane + 1 : lane + 1 + begins.size]
        target = out[lane * LANE : (lane + begins.size) * LANE]
        # The last lane of all may reach to the end of the padding: no lane is longer than LANE codewords.
        first, last = int(begins[0]) >> 3, min(int(ends[-1]), int(begins[-1]) + LANE * MAX_BITS) + 7 >> 3
        _decode_lanes(source[first:last], begins - 8 * first, ends - 8 * first, target, symbol_at, length_at, longest)
    return out


def _decode_lanes(
    source: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    target: np.ndarray,
    symbol_at: np.ndarray,
    length_at: np.ndarray,
    longest: int,
) -> None:
    """Decodes neighbouring lanes into ``target``; all but the last have :data:`LANE` symbols. Positions are in bits."""
    octets = np.pad(source, (0, 4)).astype(np.int32)
    windows = octets[:-2] << 16 | octets[1:-1] << 8 | octets[2:]  # 24 bits from every byte on: a codeword and an offset of 7
    mask = (1 << longest) - 1
    in_last = target.size - (begins.size - 1) * LANE
    full = int(in_last == LANE)
    decoded = np.empty((LANE, begins.size), target.dtype)
    position, last = begins.copy(), 0
    for step in range(LANE):
        if step == in_last:
            position, last = position[:-1].copy(), int(position[-1])
            if not position.size:
                break
        # mode="clip" keeps a runaway lane of a damaged stream inside the array; its end then does not fit.
        window = windows.take(position >> 3, mode="clip")
        code = (window >> (24 - longest - (position & 7))) & mask
        decoded[step, : position.size] = symbol_at[code]
        position += length_at[code]
    if full:
        position, last = position[:-1], int(position[-1])
    if (position != ends[:-1]).any() or last > ends[-1]:
        raise ValueError("the Huffman stream is damaged: a run of symbols does not end where the next begins")
    whole = begins.size - 1 + full
    target[: whole * LANE].reshape(whole, LANE)[:] = decoded[:, :whole].T
    if not full:
        target[whole * LANE :] = decoded[:in_last, -1]
