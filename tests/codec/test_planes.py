"""Byte planes: any array comes back bit for bit, and trained weights shrink to what the entropy of their exponents allows."""

import contextlib
import json

import ml_dtypes
import numpy as np
import pytest

from bqjax import codec
from bqjax.codec import container, planes, structure
from bqjax.codec.planes import decode_planes, encode_planes

RNG = np.random.default_rng(0)


def heavy(n):
    """As trained weights: layers of several scales."""
    return (RNG.normal(size=n) * RNG.choice([0.01, 0.03, 0.1], n)).astype(np.float32)


def words(array):
    return array.reshape(-1).view(np.uint8).tobytes()


def stream_of(array):
    return b"".join(encode_planes(words(array), array.dtype))


@pytest.mark.parametrize("name", structure.DTYPES)
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_noise_of_every_dtype_comes_back_bit_for_bit(name, n):
    dtype = structure.DTYPES[name]
    data = RNG.integers(0, 256, n * dtype.itemsize).astype(np.uint8).tobytes()
    stream = b"".join(encode_planes(data, dtype))
    assert decode_planes(stream, len(data), dtype) == data
    assert decode_planes(stream + b"\0\0", len(data), dtype) == data


@pytest.mark.parametrize(("dtype", "most"), [(ml_dtypes.bfloat16, 0.7), (np.float32, 0.85), (np.float16, 0.88), (np.float64, 0.95)])
def test_weights_shrink_by_their_exponents(dtype, most, monkeypatch):
    monkeypatch.setattr(planes, "_PIECE", 30_000)  # several, the last one short
    weights = heavy(100_001).astype(dtype)
    stream = stream_of(weights)
    assert decode_planes(stream, weights.nbytes, weights.dtype) == words(weights)
    assert len(stream) < most * weights.nbytes
    exponents = np.bincount(np.frexp(weights.astype(np.float64))[1] + 2000)
    p = exponents[exponents > 0] / weights.size
    rest = {1: 0, 2: 8, 4: 24, 8: 55}[weights.dtype.itemsize] if weights.dtype != np.float16 else 11
    # Within 3 % of the entropy of the exponents, with sign and mantissa as they are.
    assert len(stream) < 1.03 * weights.size * (rest - (p @ np.log2(p))) / 8


def test_leaves_that_are_left_are_stored_as_planes(tmp_path):
    """The state of an optimiser, and of a network in bfloat16."""
    state = {"mu": heavy(40_000), "nu": np.square(heavy(40_000)), "w": heavy(40_000).astype(ml_dtypes.bfloat16)}
    state |= {"count": np.int32(7), "bias": np.zeros(9_000, np.float32), "ids": np.arange(30_000), "short": heavy(5)}
    for thorough in (True, False):
        info = codec.save(tmp_path / "f", state, force=True, thorough=thorough)
        assert codec.inspect(tmp_path / "f") == info
        restored = codec.load(tmp_path / "f")
        assert {n: (a.dtype, a.shape, words(a)) for n, a in restored.items()} == {
            n: (np.asarray(a).dtype, np.shape(a), words(np.asarray(a))) for n, a in state.items()
        }
        restored["w"][0] = 1  # writable
        coders = {leaf.name: leaf.coder for leaf in info.leaves}
        assert coders["mu"] == coders["nu"] == coders["w"] == "planes"
        assert coders["bias"] == ("zstd" if thorough else "planes") and coders["short"] == "raw"
        assert {leaf.name: leaf for leaf in info.leaves}["w"].bytes < 0.7 * 80_000


def test_large_floats_skip_the_slow_levels(tmp_path, monkeypatch):
    levels = []
    zstd = codec.container.entropy.zstd
    monkeypatch.setattr(codec.container.entropy, "zstd", lambda data, **k: levels.append(len(data)) or zstd(data, **k))
    codec.save(tmp_path / "f", {"w": heavy(40_000), "ids": np.arange(30_000)}, thorough=False)
    assert 160_000 not in levels and 240_000 in levels


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s[:-1],
        lambda s: s[:2],
        lambda s: b"",
        lambda s: s + b"\1",
        lambda s: b"\xff\xff\xff\xff" + s[4:],
        lambda s: b"\0\0\0\0" + s[4:],
        lambda s: s[:4] + b"\0" * (len(s) - 4),
    ],
)
def test_streams_that_nobody_wrote(damage):
    weights = np.zeros(1000, np.float32)
    with pytest.raises(ValueError, match=r"byte plane|zstandard"):
        decode_planes(damage(stream_of(weights)), weights.nbytes, weights.dtype)


def test_any_damage_is_a_value_error_or_an_array(tmp_path):
    weights = heavy(600)
    stream = np.frombuffer(stream_of(weights), np.uint8)
    for i in range(300):
        mutated = stream.copy()
        mutated[RNG.integers(stream.size, size=2)] = RNG.integers(256, size=2)
        with contextlib.suppress(ValueError):
            assert len(decode_planes(mutated.tobytes(), weights.nbytes, weights.dtype)) == weights.nbytes, i


def test_a_coder_of_a_later_version_is_named(tmp_path, monkeypatch):
    dumps = json.dumps

    def later(described, **options):
        if "l" in described:
            described["l"][0]["e"] = "wavelets"
        return dumps(described, **options)

    monkeypatch.setattr(container.json, "dumps", later)
    codec.save(tmp_path / "f", {"w": heavy(5)})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"leaf 'w': unknown coder of an array \(a later version may know it\) 'wavelets'"):
        codec.load(tmp_path / "f")
