"""Coders: round trips, sizes against the entropy, garbage."""

import heapq
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bqjax.codec import entropy, huffman
from bqjax.core.leaves import index_dtype

SKEWED = np.array([0.35, 0.25, 0.17, 0.10, 0.06, 0.04, 0.02, 0.01])


def empirical_bits(symbols):
    p = np.unique(symbols, return_counts=True)[1] / symbols.size
    return float(-(p * np.log2(p)).sum()) * symbols.size


def draw(n, p, seed=0):
    return np.random.default_rng(seed).choice(len(p), size=n, p=p).astype(index_dtype(len(p)))


@st.composite
def streams(draw_from):
    k = draw_from(st.sampled_from([1, 2, 3, 8, 16, 255, 256, 257, 5000, 65536, 65537, 2**32]))
    n = draw_from(st.sampled_from([0, 1, 2, 7, 300, 1024, 1025, 2047, 2048, 2049, 6000]))
    kinds = draw_from(st.integers(1, min(k, 400)))
    seed = draw_from(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    alphabet = rng.integers(0, k, kinds)
    p = rng.gamma(draw_from(st.sampled_from([0.05, 1.0, 50.0])), size=kinds) + 1e-9
    return k, rng.choice(alphabet, size=n, p=p / p.sum()).astype(index_dtype(k))


@pytest.mark.parametrize("coder", [*entropy.CODERS, "auto"])
@hypothesis.given(streams())
def test_round_trip(coder, stream):
    k, symbols = stream
    used, data = entropy.encode(symbols, k, coder)
    assert used in entropy.CODERS
    assert len(data) >= entropy.min_bytes(symbols.size)
    decoded = entropy.decode(data, symbols.size, k, used)
    assert decoded.dtype == index_dtype(k)
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.parametrize("coder", entropy.CODERS)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16])
def test_any_integer_type_and_shape_is_taken(coder, dtype):
    symbols = np.arange(24).reshape(2, 3, 4).astype(dtype)
    used, data = entropy.encode(symbols, 24, coder)
    np.testing.assert_array_equal(entropy.decode(data, 24, 24, used), np.arange(24))


def test_ans_is_within_half_a_percent_of_the_entropy():
    symbols = draw(1_000_000, SKEWED)
    _, data = entropy.encode(symbols, 8, "ans")
    assert empirical_bits(symbols) <= 8 * len(data) <= 1.005 * empirical_bits(symbols)


@pytest.mark.parametrize("k", [256, 4096])
def test_ans_with_its_table_is_within_two_percent_for_large_alphabets(k):
    p = np.random.default_rng(k).gamma(1.0, size=k) + 1e-3
    symbols = draw(400_000, p / p.sum())
    _, data = entropy.encode(symbols, k, "ans")
    assert 8 * len(data) <= 1.02 * empirical_bits(symbols)


@pytest.mark.parametrize("coder", ["ans", "huffman"])
def test_a_constant_leaf_costs_its_padding_only(coder):
    used, data = entropy.encode(np.full(1_000_000, 5, np.uint8), 8, coder)
    assert (used, len(data)) == (coder, entropy.min_bytes(1_000_000))
    used, data = entropy.encode(np.zeros(1_000_000, np.uint8), 1, coder)
    assert (used, len(data)) == ("raw", entropy.min_bytes(1_000_000))


def test_kinds_that_never_occur_cost_next_to_nothing():
    symbols = draw(100_000, SKEWED)
    sizes = [len(entropy.encode(symbols.astype(np.uint16), k, "ans")[1]) for k in (8, 65536)]
    assert sizes[1] - sizes[0] < 100


def test_raw_is_the_bit_array():
    assert len(entropy.encode(draw(1001, SKEWED), 8, "raw")[1]) == -(-1001 * 3 // 8)


def test_auto_is_the_smallest():
    rng = np.random.default_rng(0)
    for symbols, k in [(draw(20_000, SKEWED), 8), (rng.integers(0, 256, 5000), 256), (np.tile(rng.integers(0, 256, 500), 40), 256)]:
        sizes = {coder: len(entropy.encode(symbols, k, coder)[1]) for coder in entropy.CODERS}
        used, data = entropy.encode(symbols, k)
        assert len(data) == sizes[used] == min(sizes.values())


def test_huffman_lengths_are_optimal():
    """Against the textbook algorithm with a heap, where its codewords stay below 16 bits."""
    for seed in range(20):
        counts = np.random.default_rng(seed).integers(1, 1000, size=2 + 13 * seed)
        heap = [int(c) for c in counts]
        heapq.heapify(heap)
        cost = 0
        while len(heap) > 1:
            joined = heapq.heappop(heap) + heapq.heappop(heap)
            cost += joined
            heapq.heappush(heap, joined)
        lengths = huffman.code_lengths(counts)
        assert int(counts @ lengths.astype(np.int64)) == cost
        assert np.sum(0.5 ** lengths.astype(np.float64)) == 1.0


def test_huffman_lengths_stay_within_the_limit():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    for counts in (np.array(fibonacci), np.ones(65536, np.int64)):
        lengths = huffman.code_lengths(counts)
        assert lengths.max() == 16
        assert np.sum(0.5 ** lengths.astype(np.float64)) == 1.0
    with pytest.raises(ValueError, match="tell 4 apart"):
        huffman.code_lengths(np.ones(5), max_bits=2)


def test_huffman_decodes_its_longest_codewords_over_many_lanes():
    p = 0.6 ** np.arange(40)
    symbols = draw(2_500_000, p / p.sum())
    _, data = entropy.encode(symbols, 40, "huffman")
    np.testing.assert_array_equal(entropy.decode(data, symbols.size, 40, "huffman"), symbols)


def test_streams_of_version_1_stay_readable():
    """Bytes written by the first release. ``ans`` depends on how constriction rounds frequencies: it must not change."""
    symbols = np.array([0, 1, 2, 3, 0, 0, 0, 1, 7, 0, 1, 0] * 20, np.uint8)
    for coder, stored in GOLDEN.items():
        np.testing.assert_array_equal(entropy.decode(bytes.fromhex(stored), symbols.size, 8, coder), symbols)
        if coder != "zstd":  # whose encoder may improve
            assert entropy.encode(symbols, 8, coder)[1].hex() == stored


GOLDEN = {
    "raw": (
        "8806204780680072048806204780680072048806204780680072048806204780680072048806204780680072048806204780"
        "68007204880620478068007204880620478068007204880620478068007204880620478068007204"
    ),
    "zstd": ("28b52ffd20f09d0000600001020300000001070001000100e1532509"),
    "ans": (
        "00271f1212000000125897cf647eaaf3860b06d9c87179b3954c7d26a8cf5287ebb780f592f58fda25105d1c0200aa189cca"
        "098b9787abfa059797e676c50c092e41bb7908"
    ),
    "huffman": (
        "0001020404000000035de2c8bbc591778b22ef1645de2c8bbc591778b22ef1645de2c8bbc591778b22ef1645de2c8bbc5917"
        "78b22ef1645de2c8bbc591778b22ef1640"
    ),
}


@pytest.mark.parametrize("coder", entropy.CODERS)
@hypothesis.given(data=st.binary(max_size=200), n=st.integers(0, 250_000), k=st.sampled_from([1, 2, 5, 8, 256, 300, 65536]))
def test_garbage_is_symbols_or_a_value_error(coder, data, n, k):
    try:
        symbols = entropy.decode(data, n, k, coder)
    except ValueError:
        return
    assert symbols.shape == (n,)
    assert symbols.dtype == index_dtype(k)
    assert symbols.size == 0 or symbols.max() < k


@pytest.mark.parametrize("coder", entropy.CODERS)
@hypothesis.given(st.data())
def test_damaged_streams_are_symbols_or_a_value_error(coder, data):
    symbols = draw(5000, SKEWED)
    stream = bytearray(entropy.encode(symbols, 8, coder)[1])
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, min(60, len(stream)) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(stream)))
    try:
        decoded = entropy.decode(bytes(stream[:cut]), 5000, 8, coder)
    except ValueError:
        return
    assert decoded.shape == (5000,)
    assert decoded.max() < 8


def test_counts_that_the_bytes_do_not_bear_out_are_refused_at_once():
    for coder in entropy.CODERS:
        with pytest.raises(ValueError, match="one byte per 1024"):
            entropy.decode(b"\0" * 100, 10**13, 8, coder)
    bomb = entropy.zstd(bytes(10_000_000))
    with pytest.raises(ValueError, match="the frame states 10000000"):
        entropy.decode(bomb, 100, 8, "zstd")


def test_refuses_what_it_cannot_code():
    with pytest.raises(ValueError, match="unknown coder 'lzma'"):
        entropy.encode(np.zeros(3, np.uint8), 2, "lzma")
    with pytest.raises(ValueError, match="unknown coder 'auto'"):
        entropy.decode(b"", 0, 2, "auto")
    with pytest.raises(ValueError, match=r"must lie in \[0, 4\), got 1 to 4"):
        entropy.encode(np.array([1, 4]), 4)
    with pytest.raises(ValueError, match="must be integers, got float64"):
        entropy.encode(np.zeros(3), 4)
    with pytest.raises(ValueError, match="between 1 and"):
        entropy.encode(np.zeros(3, np.uint8), 0)
    with pytest.raises(ValueError, match="at most 65536 kinds"):
        entropy.decode(b"abc", 3, 65537, "ans")


@pytest.mark.parametrize("coder", ["raw", "ans", "huffman"])
def test_speed(coder):
    """A tenth of what an idle core does, so that a busy machine passes: a loop over symbols would not."""
    symbols = draw(1_000_000, SKEWED)
    start = time.perf_counter()
    _, data = entropy.encode(symbols, 8, coder)
    middle = time.perf_counter()
    entropy.decode(data, symbols.size, 8, coder)
    assert middle - start < 0.3
    assert time.perf_counter() - middle < 0.3
