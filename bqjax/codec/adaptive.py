"""Adaptive entropy coding: no frequency table, the symbols so far say how likely the next ones are.

A table costs up to a byte for each kind of symbol, as much as a small leaf's codes. Here every kind starts with half an
occurrence (the estimator of Krichevsky and Trofimov), and the stream is cut into pieces, each an eighth of what stands before
it, that are coded by the counts up to there: whole arrays at a time. Over ``n`` symbols of ``k`` kinds this costs about
``(k - 1) / 2 log2(n / k) + k`` bits more than the entropy.

Leaves that share a codebook use its entries alike: counts of the earlier ones can be what a stream starts from. They are
divided by a power of two that the stream names, so that a leaf that differs soon outweighs them.

Where symbols are known to change their frequencies (at *breaks*), what was counted so far goes on as a few occurrences.

References:
  Krichevsky, Trofimov 1981, "The performance of universal encoding", IEEE Trans. Information Theory 27(2).
  Duda 2013 (arXiv 1311.2540): asymmetric numeral systems, here by the constriction library.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import constriction
import numpy as np

from bqjax.core.leaves import index_dtype

__all__ = ["decode_payload", "encode_payload"]

_FIRST, _SHARE, _MOST = 32, 8, 1 << 20
# By which powers of two counts of earlier leaves may be divided; the stream's first byte is 0 for none of them, or 1 + shift.
_SHIFTS = (0, 2, 4)
# Occurrences that go on over a break, at most. On indices of two networks 32 to 256 are within a percent of each other.
_KEPT = 64


def _pieces(n: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the pieces that a stream of ``n`` symbols is cut into."""
    start = 0
    while start < n:
        end = min(n, start + min(max(_FIRST, start // _SHARE), _MOST))
        yield start, end
        start = end


def _segments(n: int, breaks: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of what lies between breaks."""
    edges = [0, *breaks, n]
    return list(itertools.pairwise(edges))


def _over_a_break(counts: np.ndarray) -> np.ndarray:
    total = int(counts.sum())
    return counts * _KEPT // total if total > _KEPT else counts


def _model(counts: np.ndarray) -> Any:
    # Sums of integers and one division only: float64 does the same on every machine.
    return constriction.stream.model.Categorical((2 * counts + 1).astype(np.float64), perfect=False)


def _start(earlier: np.ndarray | None, k: int, code: int) -> np.ndarray:
    return np.zeros(k, np.int64) if earlier is None or not code else earlier.astype(np.int64) >> (code - 1)


def _encoded(symbols: np.ndarray, k: int, earlier: np.ndarray | None, code: int, breaks: Sequence[int]) -> bytes:
    segments, starts = _segments(symbols.size, breaks), [_start(earlier, k, code)]
    for start, end in segments:
        starts.append(_over_a_break(starts[-1] + np.bincount(symbols[start:end], minlength=k)))
    coder = constriction.stream.stack.AnsCoder()
    # A stack: what goes in last comes out first.
    for (first, last), counts in zip(reversed(segments), starts[-2::-1], strict=True):
        counts += np.bincount(symbols[first:last], minlength=k)
        for start, end in reversed(list(_pieces(last - first))):
            piece = symbols[first + start : first + end]
            counts -= np.bincount(piece, minlength=k)
            coder.encode_reverse(piece.astype(np.int32), _model(counts))
    # The last word is never zero, so that zero bytes at the end carry nothing.
    return bytes([code]) + coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def encode_payload(symbols: np.ndarray, k: int, earlier: np.ndarray | None = None, breaks: Sequence[int] = ()) -> bytes:
    """A stream of symbols, the shortest that the counts of earlier leaves allow.

    Args:
      symbols: ``[n]`` unsigned integers below ``k``.
      k: kinds of symbols, at least 2.
      earlier: ``[k]`` non-negative numbers of occurrences in leaves that the reader has before this one; None if there are none.
      breaks: rising positions inside the stream, known to the reader, from which on frequencies are others.

    Example:
      >>> data = encode_payload(np.array([3, 3, 1, 3], np.uint8), 4)
      >>> decode_payload(memoryview(data), 4, 4).tolist()
      [3, 3, 1, 3]
    """
    codes = (0,) if earlier is None else (0, *(shift + 1 for shift in _SHIFTS))
    return min((_encoded(symbols, k, earlier, code, breaks) for code in codes), key=len)


def decode_payload(data: memoryview, n: int, k: int, earlier: np.ndarray | None = None, breaks: Sequence[int] = ()) -> np.ndarray:
    """Inverse of :func:`encode_payload`, which was given the same counts and breaks.

    Returns:
      ``[n]`` symbols of ``index_dtype(k)``.

    Raises:
      ValueError: the stream does not end after ``n`` symbols, or names counts that are not there.
    """
    code = data[0]
    if code > 1 + max(_SHIFTS) or (code and earlier is None):
        raise ValueError(f"the adaptive stream starts from counts of its group ({code}), which it has not")
    payload = bytes(data[1:]).rstrip(b"\0")
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32))
    counts, out = _start(earlier, k, code), np.empty(n, index_dtype(k))
    for first, last in _segments(n, breaks):
        segment = out[first:last]
        for start, end in _pieces(last - first):
            segment[start:end] = coder.decode(_model(counts), end - start)
            counts += np.bincount(segment[start:end], minlength=k)
        counts = _over_a_break(counts)
    if not coder.is_empty():
        raise ValueError(f"the adaptive stream does not end after {n} symbols")
    return out
