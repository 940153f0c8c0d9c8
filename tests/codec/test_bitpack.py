"""Bit arrays against Python's integers."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bqjax.codec import bitpack


@hypothesis.given(st.data(), st.integers(0, 32), st.integers(0, 70))
def test_packs_like_one_long_integer(data, b, n):
    symbols = data.draw(st.lists(st.integers(0, 2**b - 1), min_size=n, max_size=n))
    packed = bitpack.pack(np.array(symbols, np.uint64), b)
    expected = sum(s << (i * b) for i, s in enumerate(symbols)).to_bytes(math.ceil(n * b / 8), "little")
    assert packed == expected
    unpacked = bitpack.unpack(packed, n, b)
    assert unpacked.tolist() == symbols
    assert unpacked.dtype.itemsize == (1 if b <= 8 else 2 if b <= 16 else 4)


@pytest.mark.parametrize("b", [1, 3, 8, 11, 32])
def test_pieces_join_without_a_seam(b, monkeypatch):
    symbols = np.random.default_rng(b).integers(0, 2**b, 1003)
    whole = bitpack.pack(symbols, b)
    monkeypatch.setattr(bitpack, "_CHUNK", 7)
    assert bitpack.pack(symbols, b) == whole
    np.testing.assert_array_equal(bitpack.unpack(whole, 1003, b), symbols)


def test_too_few_bytes_are_refused_before_allocating():
    with pytest.raises(ValueError, match="need 375000000000 bytes, there are 3"):
        bitpack.unpack(b"abc", 10**12, 3)


@pytest.mark.parametrize("b", [-1, 33])
def test_bits_out_of_range(b):
    with pytest.raises(ValueError, match="0 to 32 bits"):
        bitpack.pack(np.zeros(3, np.uint8), b)
    with pytest.raises(ValueError, match="0 to 32 bits"):
        bitpack.unpack(b"", 3, b)


def test_symbol_bits_needs_a_kind():
    with pytest.raises(ValueError, match="at least 1"):
        bitpack.symbol_bits(0)
