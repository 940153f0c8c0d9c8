"""The adaptive coder: its size against the estimator it implements, counts of earlier leaves, distortion."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bqjax import codec
from bqjax.codec import entropy
from bqjax.codec.adaptive import decode_payload, encode_payload
from bqjax.core.leaves import Clustered


def krichevsky_trofimov_bits(symbols, k):
    """One symbol after the other, by the counts so far: what pieces and whole arrays only approach."""
    counts, bits = np.full(k, 0.5), 0.0
    for symbol in symbols:
        bits -= math.log2(counts[symbol] / counts.sum())
        counts[symbol] += 1
    return bits


def skewed(n, k=256, seed=0):
    rng = np.random.default_rng(seed)
    p = np.random.default_rng(k).gamma(1.5, size=k)
    return rng.choice(k, size=n, p=p / p.sum()).astype(np.uint8)


@pytest.mark.parametrize(("n", "k"), [(256, 16), (4096, 256), (20000, 3)])
def test_size_is_that_of_the_sequential_estimator_nearly(n, k):
    symbols = skewed(n, k)
    bits = krichevsky_trofimov_bits(symbols, k)
    assert bits - 8 <= 8 * len(encode_payload(symbols, k)) <= 1.015 * bits + 48


def test_small_leaves_of_many_kinds_cost_less_than_with_a_table():
    symbols = skewed(1024)
    sizes = {coder: len(entropy.encode(symbols, 256, coder)[1]) for coder in ("ans", "huffman", "adaptive")}
    assert sizes["adaptive"] < 0.96 * min(sizes["ans"], sizes["huffman"])
    assert entropy.encode(symbols, 256)[0] == "adaptive"


@hypothesis.given(st.integers(1, 3000), st.sampled_from([2, 7, 256]), st.integers(0, 5), st.booleans())
def test_round_trip_with_and_without_earlier_counts(n, k, seed, alike):
    symbols = skewed(n, k, seed)
    earlier = np.bincount(skewed(2000, k, seed + 1), minlength=k) if alike else np.arange(k) ** 2
    data = encode_payload(symbols, k, earlier)
    np.testing.assert_array_equal(decode_payload(memoryview(data), n, k, earlier), symbols)
    assert len(data) <= len(encode_payload(symbols, k))  # counts that do not help are left out


def test_a_group_of_leaves_learns_from_its_first(tmp_path):
    codebook = np.random.default_rng(0).normal(size=(256, 9)).astype(np.float32)
    sizes = {}
    for group in (None, "stage"):
        leaves = {f"{i}": Clustered(skewed(1024, seed=i), codebook, (1024, 9), np.float32, group=group) for i in range(4)}
        info = codec.save(tmp_path / f"{group}.bq.safetensors", leaves)
        sizes[group] = [leaf.code_bytes for leaf in info.leaves]
        assert {leaf.coder for leaf in info.leaves} == {"adaptive"}
        for name, leaf in codec.load(info.path).items():
            np.testing.assert_array_equal(leaf.indices, leaves[name].indices)
            np.testing.assert_array_equal(leaf.codebook, codebook)
        assert [name for name, _ in codec.read_leaves(info.path)] == list(leaves)
    assert sizes["stage"][0] == sizes[None][0]
    assert all(shared < 0.985 * alone for shared, alone in zip(sizes["stage"][1:], sizes[None][1:], strict=True))


@pytest.mark.parametrize("code", [1, 5, 200])
def test_counts_that_are_not_there_are_refused(code):
    data = bytes([code]) + encode_payload(skewed(100), 256)[1:]
    with pytest.raises(ValueError, match="counts of its group"):
        decode_payload(memoryview(data), 100, 256)


def test_a_stream_that_does_not_end_is_refused():
    data = encode_payload(skewed(1000), 256)
    with pytest.raises(ValueError, match="does not end"):
        decode_payload(memoryview(data), 500, 256)
