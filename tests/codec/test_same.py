"""Leaves that are one object, or equal, take their bytes once."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import zstandard

from bqjax import codec
from bqjax.codec import header
from bqjax.core.leaves import Clustered

RNG = np.random.default_rng(0)
BIG = RNG.integers(0, 2**62, 1000)


def clustered(group=None):
    return Clustered(
        RNG.integers(0, 16, 6000).astype(np.uint8), RNG.normal(size=(16, 1)).astype(np.float32), (60, 100), np.float32, group=group
    )


@pytest.mark.parametrize(
    "leaf", [BIG, BIG.reshape(10, 100).T, clustered(), clustered("g")], ids=["array", "view", "clustered", "group"]
)
def test_one_object_is_one_again(leaf, tmp_path):
    once = codec.save(tmp_path / "once", {"embed": leaf}).file_bytes
    info = codec.save(tmp_path / "f", {"head": {"w": leaf}, "embed": leaf, "last": [leaf]})
    assert info.file_bytes < once + 100
    assert [entry.same_as for entry in info.leaves] == [None, "head/w", "head/w"]
    assert codec.inspect(tmp_path / "f") == info
    assert info.weight_bytes == 3 * info.leaves[0].weight_bytes
    tree = codec.load(tmp_path / "f")
    assert tree["head"]["w"] is tree["embed"] is tree["last"][0]
    restored = codec.load(tmp_path / "f", like={"head": {"w": leaf}, "embed": leaf, "last": [leaf]})
    assert restored["embed"] is restored["last"][0]
    again = codec.save(tmp_path / "again", tree)
    assert (again.file_bytes, again.sha256) == (info.file_bytes, info.sha256)


def test_equals_stay_two_objects(tmp_path):
    info = codec.save(
        tmp_path / "f", {"a": BIG, "b": BIG.copy(), "c": BIG.view(np.uint64), "d": BIG.reshape(10, 100), "e": BIG + 1}
    )
    assert [entry.same_as for entry in info.leaves] == [None, "a", None, None, None]
    tree = codec.load(tmp_path / "f")
    tree["b"][0] += 1
    assert tree["a"][0] == BIG[0] != tree["b"][0]
    leaves = dict(codec.read_leaves(tmp_path / "f"))
    np.testing.assert_array_equal(leaves["b"], BIG)
    leaves["b"][0] += 1
    assert leaves["a"][0] == BIG[0]


def test_small_and_scalar_leaves_are_their_own(tmp_path):
    """So that files of few bytes a leaf are what they were."""
    one, zeros = np.float32(1), np.zeros(5000, np.float32)
    info = codec.save(tmp_path / "f", {"a": one, "b": one, "c": zeros, "d": zeros.copy()})
    assert [entry.same_as for entry in info.leaves] == [None] * 4


def test_a_small_file_is_no_huge_tree(tmp_path):
    zeros = np.zeros(1_000_000)
    info = codec.save(tmp_path / "f", dict.fromkeys(map(str, range(20)), zeros))
    assert info.weight_bytes <= 2 * 1024 * sum(entry.bytes for entry in info.leaves)
    data = bytes(zstandard.ZstdCompressor().compress(zeros.tobytes())).ljust(7813, b"\0")
    records = [{"s": [1_000_000], "t": "float64", "n": len(data)}, *({"x": "s", "r": "0", "i": 1} for _ in range(5))]
    forged(tmp_path / "forged", data, {str(i): 0 for i in range(6)}, records)
    with pytest.raises(ValueError, match="leaves that repeat others would take 40039065 bytes"):
        codec.load(tmp_path / "forged")


@pytest.mark.parametrize(
    "record",
    [
        {"x": "s"},
        {"x": "s", "r": "b"},
        {"x": "s", "r": "c"},
        {"x": "s", "r": 0},
        {"x": "s", "r": "a", "i": 2},
        {"x": "s", "r": "a", "n": 1},
    ],
)
def test_records_that_refer_to_nothing_are_refused(record, tmp_path):
    forged(tmp_path / "f", bytes(8), {"a": 0, "b": 0, "c": 0}, [{"s": [1], "t": "float64"}, record, {"x": "s", "r": "a"}])
    with pytest.raises(ValueError, match="leaf 'b': "):
        codec.load(tmp_path / "f")
    forged(tmp_path / "f", bytes(8), {"a": 0, "b": 0}, [{"s": [1], "t": "float64"}, {"x": "s", "r": "a"}])
    np.testing.assert_array_equal(codec.load(tmp_path / "f")["b"], [0.0])


def forged(path, data, tree, records):
    text = json.dumps({"t": tree, "l": records}).encode()
    packed = zstandard.ZstdCompressor().compress(text).ljust(-(-len(text) // 64), b"\0")
    body = data + packed
    path.write_bytes(header.Header(len(data), len(packed), hashlib.sha256(body).hexdigest()).to_bytes() + body)
