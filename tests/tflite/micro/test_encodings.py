"""Look-up tables, Huffman codes and bitmaps: through our reader, and through the kernels of TFLM's wheel."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from decoder import by_kernel, decoder

from bqjax.codec.huffman import code_lengths
from bqjax.tflite.format.records import unpack
from bqjax.tflite.micro.encoded import bit_groups
from bqjax.tflite.micro.huffman import MAX_CODE_BITS, encode_huffman, huffman_bytes
from bqjax.tflite.micro.lut import encode_lut
from bqjax.tflite.micro.operators import without_decode
from bqjax.tflite.micro.pruning import encode_pruning


def ours(content):
    (found,) = without_decode(unpack(content))[1]
    return found.codes


@st.composite
def tensors(draw, most=256):
    """Tensors of one to four dimensions, of one value to many, evenly full or not; an axis, and zero points along it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from((np.int8, np.int16)))
    info, n = np.iinfo(dtype), draw(st.integers(1, most))
    values = rng.choice(np.arange(info.min, info.max + 1), n, replace=False)
    codes = rng.choice(values, shape, p=rng.dirichlet(np.full(n, 10.0 ** draw(st.integers(-2, 1))))).astype(dtype)
    axis = draw(st.sampled_from((0, len(shape) - 1)))
    return codes, axis, rng.integers(-3, 4, shape[axis])


@given(tensors(128), st.booleans())
def test_lut_decodes_to_what_was_encoded(tensor, several):
    codes, axis, _ = tensor
    zeros = np.zeros(codes.shape[axis], int)
    encoded = encode_lut(codes, axis if several and len(zeros) > 1 else None)
    np.testing.assert_array_equal(ours(decoder(codes, encoded, zeros, axis)), codes)
    assert encoded.bits <= 7


@given(tensors(), st.none() | st.integers(1, 16), st.booleans())
def test_huffman_decodes_to_what_was_encoded(tensor, root_bits, wide):
    codes = tensor[0]
    try:
        encoded = encode_huffman(codes, root_bits, wide=True if wide else None)
    except ValueError as error:  # a first table of 11 bits or more, and 16-bit entries
        assert "write 32-bit ones" in str(error) and (root_bits or 0) > 10
        return
    np.testing.assert_array_equal(ours(decoder(codes, encoded)), codes)
    lengths = code_lengths(np.unique(codes, return_counts=True)[1], MAX_CODE_BITS)
    assert 0 < encoded.lookups <= lengths.max()


@given(tensors(), st.booleans())
def test_pruning_decodes_to_what_was_encoded(tensor, several):
    codes, axis, zeros = tensor
    zeros = zeros if several and len(zeros) > 1 else zeros[:1]
    absent = zeros.astype(codes.dtype).reshape([-1 if i == axis and len(zeros) > 1 else 1 for i in range(codes.ndim)])
    encoded = encode_pruning(codes, absent)
    np.testing.assert_array_equal(ours(decoder(codes, encoded, zeros, axis if len(zeros) > 1 else 0)), codes)


@settings(max_examples=40)
@given(tensors(128), st.sampled_from(("lut", "channels", "huffman", "root", "pruning")), st.integers(1, 10))
def test_the_kernels_decode_the_same(tensor, kind, root_bits):
    codes, axis, zeros = tensor
    zeros, along = np.zeros_like(zeros), axis if len(zeros) > 1 else 0
    if kind == "lut":
        encoded = encode_lut(codes)
    elif kind == "channels":
        encoded = encode_lut(codes, axis if len(zeros) > 1 else None)
    elif kind == "pruning":
        codes, zeros = codes.astype(np.int8), tensor[2]
        encoded = encode_pruning(codes, zeros.astype(np.int8).reshape([-1 if i == axis else 1 for i in range(codes.ndim)]))
    else:
        encoded = encode_huffman(codes, None if kind == "huffman" else root_bits)
    content = decoder(codes, encoded, zeros, along)
    np.testing.assert_array_equal(by_kernel(content, codes.shape), codes)
    np.testing.assert_array_equal(ours(content), codes)


@pytest.mark.parametrize("bits", range(1, 8))
def test_every_width_and_lengths_that_fill_no_word(bits):
    for n in (1, 7, 31, 33, 129):
        codes = (np.arange(n) % (1 << bits) - 1).astype(np.int8)
        encoded = encode_lut(codes)
        assert encoded.bits == min(bits, max(1, int(n - 1).bit_length()))
        content = decoder(codes, encoded)
        np.testing.assert_array_equal(ours(content), codes)
        np.testing.assert_array_equal(by_kernel(content, codes.shape), codes)


@pytest.mark.parametrize("kind", ("uniform", "skewed"))
def test_a_stream_longer_than_a_chunk(kind):
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, 60_000) if kind == "uniform" else np.clip(np.rint(rng.normal(0, 1, 400_000)), -9, 9)
    codes = codes.astype(np.int8)
    encoded = encode_huffman(codes, 12, wide=True)
    np.testing.assert_array_equal(ours(decoder(codes, encoded)), codes)


def test_the_best_tables_are_never_larger_than_those_of_any_width():
    rng = np.random.default_rng(1)
    for spread in (0.5, 2.0, 20.0):
        codes = np.clip(np.rint(rng.normal(0, spread, 4000)), -128, 127).astype(np.int8)
        best = encode_huffman(codes)
        assert len(best.ancillary) <= min(len(encode_huffman(codes, root).ancillary) for root in range(1, 9))
        counts = np.unique(codes, return_counts=True)[1]
        lengths, n_bytes = huffman_bytes(counts)
        assert abs(n_bytes - len(best.data) - len(best.ancillary)) <= 8
        assert (lengths * counts).sum() / 4000 == best.bits
    one = encode_huffman(np.full(77, 5, np.int8))  # a symbol that is alone has a codeword of one bit
    assert (one.values, one.bits, len(one.data)) == (1, 1.0, 12)


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match="129 different values: a look-up table holds at most 128"):
        encode_lut(np.arange(129, dtype=np.uint8).view(np.int8))
    with pytest.raises(ValueError, match="tables along dimension 1 of 3: kernels know the first and the last"):
        encode_lut(np.zeros((2, 3, 4), np.int8), 1)
    with pytest.raises(ValueError, match="a first table of 17 bits"):
        encode_huffman(np.zeros(3, np.int8), 17)


def test_bit_groups_are_most_significant_bit_first():
    assert bit_groups(bytes([0b10110100]), 2, 3).tolist() == [0b101, 0b101]
    with pytest.raises(ValueError, match="3 values of at least 3 bits do not fit 1 bytes"):
        bit_groups(b"\0", 3, 3)


def test_a_huffman_tensor_by_hand():
    """Codewords 0, 10, 110, 111 in tables of 2 bits and of 1: entries and stream written down from the format's description."""
    encoded = encode_huffman(np.array([0, 0, 0, 0, 1, 1, 2, 3], np.int8))
    found = [0x8000 | bits << 11 | value for bits, value in ((1, 0), (1, 0), (2, 1))]
    onward = 0 << 11 | 1  # the next table has 2^(0 + 1) entries and begins one entry further
    entries = np.array([*found, onward, 0x8000 | 1 << 11 | 2, 0x8000 | 1 << 11 | 3], "<u2")
    assert encoded.ancillary == bytes([1, 1, 0, 0, 1, (2 - 1) << 4]) + bytes(10) + entries.tobytes()
    assert encoded.data == bytes([0b00001010, 0b11011100, 0, 0])
    assert encoded.lookups == 1 + 2 / 8


def test_look_up_tables_by_hand():
    one = encode_lut(np.array([[5, -7, 5], [9, 9, 5]], np.int8))
    assert one.ancillary == bytes([0, 1, 0, 0, 1, 0xF2]) + bytes(10) + np.array([-7, 5, 9, 0], np.int8).tobytes()
    assert one.data == bytes([0b01000110, 0b10010000])
    rows = encode_lut(np.array([[5, -7, 5], [9, 9, 5]], np.int8), 0)
    assert rows.ancillary == bytes([0, 1, 0, 0, 1, 0x01, 2]) + bytes(9) + np.array([-7, 5, 5, 9], np.int8).tobytes()
    assert rows.data == bytes([0b10111000])
