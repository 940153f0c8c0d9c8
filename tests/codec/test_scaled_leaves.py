"""Files of leaves whose slices have units of their own: round trips, what coding slices by exponent saves, records."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bqjax import codec
from bqjax.codec.adaptive import decode_payload, encode_payload
from bqjax.codec.info import LeafInfo
from bqjax.codec.records import parse_records, to_record
from bqjax.core.leaves import Clustered, Scaled, exponents_of, index_dtype

SHAPES = [
    ((30, 20), (30, 1)),
    ((3, 3, 4, 16), (1, 1, 1, 16)),
    ((4, 6, 5), (1, 6, 5)),
    ((7,), (7,)),
    ((5, 1), (1, 1)),
    ((0, 4), (0, 1)),
]


def rounded(shape, own, seed=0, dtype=np.float32):
    """Gaussian weights rounded with a step for each slice."""
    rng = np.random.default_rng(seed)
    exponents = rng.integers(-3, 4, own)
    codes = np.rint(rng.normal(size=shape) * np.exp2(2.0 - exponents)).astype(int)
    used, indices = np.unique(codes, return_inverse=True)
    used = used if len(used) else np.zeros(1)
    leaf = Clustered(indices.reshape(-1).astype(index_dtype(len(used))), used[:, None].astype(np.float32), shape, np.float32)
    none = Clustered(np.zeros(0, np.uint8), np.zeros((1, 1), np.int8), own, np.int8)
    return Scaled(leaf, exponents_of(exponents) if exponents.size else none, np.dtype(dtype))


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    st.sampled_from(SHAPES), st.integers(0, 99), st.sampled_from(codec.CODERS), st.sampled_from([np.float32, np.float16])
)
def test_round_trip(tmp_path, shapes, seed, coder, dtype):
    leaf = rounded(*shapes, seed, dtype)
    info = codec.save(tmp_path / "f", {"w": leaf}, coder=coder, force=True)
    assert codec.inspect(tmp_path / "f") == info
    (said,) = info.leaves
    assert (said.kind, said.shape, said.dtype, said.bytes) == ("scaled", leaf.shape, leaf.dtype, sum(p.bytes for p in said.parts))
    back = codec.load(tmp_path / "f")["w"]
    assert (back.dtype, back.leaf.dtype) == (leaf.dtype, np.float32)
    for a, b in ((back.leaf, leaf.leaf), (back.exponents, leaf.exponents)):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.codebook, b.codebook)


def test_slices_of_an_exponent_have_frequencies_of_their_own(tmp_path):
    leaf = rounded((256, 200), (256, 1))
    sizes = {c: codec.save(tmp_path / c, {"w": leaf}, coder=c).leaves[0].code_bytes for c in ("ans", "adaptive")}
    codes, own = leaf.leaf.indices.reshape(256, 200), np.asarray(leaf.exponents.decode())[:, 0]
    counts = [np.unique(codes[own == e], return_counts=True)[1] for e in np.unique(own)]
    ideal = sum(float(-(n * np.log2(n / n.sum())).sum()) for n in counts) / 8
    assert ideal < sizes["adaptive"] < 1.03 * ideal + 100
    assert sizes["adaptive"] < 0.9 * sizes["ans"]


@hypothesis.given(st.lists(st.integers(1, 400), max_size=4), st.sampled_from([2, 7, 300]), st.integers(0, 5), st.booleans())
def test_streams_with_breaks_round_trip(lengths, k, seed, after):
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(0, max(1, k >> i), n) for i, n in enumerate(lengths)]
    symbols = np.concatenate([*pieces, [k - 1]]).astype(index_dtype(k))
    breaks = tuple(np.cumsum(lengths).tolist())
    earlier = np.arange(k) if after else None
    data = encode_payload(symbols, k, earlier, breaks)
    np.testing.assert_array_equal(decode_payload(memoryview(data), symbols.size, k, earlier, breaks), symbols)


RECORD = {"x": "v", "l": {"x": "c", "s": [3, 4], "n": 12, "k": 5, "e": "raw"}, "a": [0], "p": [{"n": 3, "k": 2, "e": "raw"}]}


def test_a_record_comes_back():
    (info,) = parse_records(["w"], [RECORD])
    assert (info.kind, info.shape, info.parts[1].shape, info.bytes) == ("scaled", (3, 4), (3, 1), 12 + 5 * 4 + 3 + 2)
    assert isinstance(info, LeafInfo) and to_record(info) == RECORD
    other = RECORD | {"t": "float16"}
    assert to_record(parse_records(["w"], [other])[0]) == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l": 5}, "'l' must be the record of the leaf in other units, is 5"),
        ({"l": RECORD}, "unknown leaf kind in other units 'v'"),
        ({"l": {"s": [3, 4]}}, "unknown leaf kind in other units ''"),
        ({"l": RECORD["l"] | {"g": "g"}}, "is in C order and in no group"),
        ({"l": RECORD["l"] | {"o": [1, 0]}}, "is in C order and in no group"),
        ({"a": [2]}, "'a' must be axes of"),
        ({"a": [1, 0]}, "'a' must be axes of"),
        ({"a": None}, "'a' must be at most 64 integers"),
        ({"p": []}, "'p' must be a list of 1 to 1"),
        ({"p": [{"n": 3, "k": 2, "d": 2}]}, "unknown keys, 'd'"),
        ({"s": [3, 4]}, "unknown keys, 's'"),
    ],
)
def test_records_are_checked(changes, message):
    with pytest.raises(ValueError, match=f"leaf 'w': .*{message}"):
        parse_records(["w"], [RECORD | changes])
