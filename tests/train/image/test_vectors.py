"""What a file holds beside kernels: folded BatchNorm, vectors of few bits, quantizers in one record a kind."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bqjax import codec
from bqjax.core.leaves import Affine, Clustered
from bqjax.core.tree import named_leaves
from bqjax.quantizers import QuantizerConfig
from train.image.files import read_quantized, write_quantized
from train.image.vectors import few_bits, folded, packed_quantizers, statistics_of, unpacked_quantizers

VECTORS = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32))


@given(VECTORS)
@settings(max_examples=60, deadline=None)
def test_a_vector_of_8_bits_is_off_by_half_a_step(x):
    leaf = few_bits(x, 8)
    assert isinstance(leaf, Affine)
    leaf.validate("x")
    step = max((max(x.max(), 0) - min(x.min(), 0)) / 255 * 1.002, 1e-7)
    # Half a step, what float16 loses of the value, and one step where the zero was rounded.
    assert np.abs(np.asarray(leaf.decode(), np.float32) - x).max() <= 1.01 * step + np.abs(x).max() * 2**-10


def test_a_vector_of_16_bits_and_one_that_does_not_fit():
    assert few_bits([1.0, 0.3], 16).dtype == np.float16
    with pytest.raises(ValueError, match=re.escape("1e+06 does not fit float16")):
        few_bits([1e6], 8)


def network(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "conv": {"kernel": draw(3, 3, 4, 8)},
        "layer": {0: {"bn": {"scale": draw(8), "bias": draw(8)}}},
        "linear": {"kernel": draw(8, 3), "bias": draw(3)},
    }
    scalars = {"weight_lower": -2.5, "weight_upper": 2.5, "activation_lower": 0.0, "activation_upper": 3.1, "scale": 0.7}
    quantizers = {"conv": {name: np.float32(value) for name, value in scalars.items()}}
    statistics = {"layer": {0: {"bn": {"mean": draw(8), "var": np.square(draw(8)) + np.float32(0.1)}}}}
    return params, quantizers, statistics | {"conv": {"delta": np.float32(1), "progress": np.float32(0)}}


def line(params, statistics, x, epsilon):
    """BatchNorm's formula, by NumPy."""
    bn, told = ({key: np.asarray(leaf) for key, leaf in of["layer"][0]["bn"].items()} for of in (params, statistics))
    return (x - told["mean"]) / np.sqrt(told["var"] + epsilon) * bn["scale"] + bn["bias"]


def test_a_folded_batch_norm_is_the_same_line():
    params, _, statistics = network()
    x = np.random.default_rng(1).normal(size=(20, 8))
    small, left = folded(params, statistics, {"layer/0/bn": 1e-3})
    assert left == {"conv": statistics["conv"]} and small["conv"]["kernel"] is params["conv"]["kernel"]
    whole, told = statistics_of(small)
    assert set(told) == {"layer/0/bn/mean", "layer/0/bn/var"} and "folded" not in whole["layer"][0]["bn"]
    nested = {"layer": {0: {"bn": {"mean": told["layer/0/bn/mean"], "var": told["layer/0/bn/var"]}}}}
    np.testing.assert_allclose(line(whole, nested, x, 1e-3), line(params, statistics, x, 1e-3), atol=1e-5)
    with pytest.raises(ValueError, match="BatchNorm 'other' has no scale"):
        folded(params, statistics, {"other": 1e-3})


def test_quantizers_of_several_kinds_come_back_by_name():
    quantizers = {"a": {0: {"scale": np.float32(0.3)}}, "b": {"scale": np.float32(2), "weight_lower": np.float32(-1)}}
    packed = packed_quantizers(quantizers)
    assert len(jax.tree.leaves(packed)) == 3
    expected = {name: np.float32(np.float16(value)) for name, value in named_leaves(quantizers).items()}
    assert unpacked_quantizers(packed) == expected


@pytest.mark.parametrize("bits", [8, 16, None])
def test_a_network_through_its_file(bits, tmp_path):
    params, quantizers, statistics = network()
    rng = np.random.default_rng(2)
    leaf = Clustered(
        rng.integers(0, 4, 32).astype(np.uint8), rng.normal(size=(4, 9)).astype(np.float32), (3, 3, 4, 8), np.float32, (3, 2, 0, 1)
    )
    path = tmp_path / "net.bq.safetensors"
    config = QuantizerConfig(weight_bits=8, activation_bits=8)
    said = write_quantized(
        path, params, {"conv/kernel": leaf}, quantizers, statistics, config, vector_bits=bits, epsilons={"layer/0/bn": 1e-5}
    )
    assert "bits per weight of all" in said
    stored = read_quantized(path)
    told = {name: np.asarray(value) for name, value in stored.statistics.items()}
    x = rng.normal(size=(20, 8))
    nested = {"layer": {0: {"bn": {key: told[f"layer/0/bn/{key}"] for key in ("mean", "var")}}}}
    off = {8: 0.05, 16: 0.01, None: 1e-6}[bits]
    np.testing.assert_allclose(line(stored.network, nested, x, 1e-5), line(params, statistics, x, 1e-5), atol=off * 20)
    assert {name: float(value) for name, value in stored.quantizers.items()} == pytest.approx(
        {name: float(value) for name, value in named_leaves(quantizers).items()}, rel=1e-3
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(stored.network))
    count = len(codec.inspect(path).leaves)
    assert count == (10 if bits else 12)
    np.testing.assert_allclose(stored.network["conv"]["kernel"], leaf.decode(), atol=0.011)
