"""Codebooks in few bits; taking them out and training them is tested with the loop, in test_gwk.py."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bqjax import Rule, codec, decode
from bqjax.core.leaves import Clustered
from bqjax.kmeans.codebooks import codebooks, quantize_codebooks, rounded_codebooks
from bqjax.methods.gwk.cluster import GWKConfig, gwk_cluster
from bqjax.quantizers import QuantizerConfig, fake_quantize_weights

CONFIG = GWKConfig(bits=3, cv=6, pw=4)


def tree():
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in (("a", (12, 8)), ("b", (24, 4)), ("c", (3, 3, 3, 8)))
    }
    return gwk_cluster(params, None, [Rule("c"), Rule("*", group="g")], key=jax.random.key(0), config=CONFIG)[0]


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_entries_go_to_the_nearest_point_of_the_grid(bits):
    intervals = {"c": (-0.8, 1.1)}
    small = quantize_codebooks(tree(), intervals, bits=bits)
    for name, values in codebooks(tree()).items():
        x = np.asarray(values, np.float64)
        lower, upper = intervals.get(name, (x.min(), x.max()))
        grid = np.linspace(lower, upper, 2**bits)
        nearest = grid[np.abs(x[..., None] - grid).argmin(-1)]
        np.testing.assert_allclose(codebooks(small)[name], nearest, atol=1e-5)
    assert {leaf.codebook.dtype for leaf in small.values()} == {np.dtype(np.uint8)}


def test_a_layer_with_the_same_interval_computes_what_it_did(tmp_path):
    """The quantizer gives an entry and its grid point the same code."""
    config = QuantizerConfig(weight_bits=8, activation_bits=8)
    scalars = {"weight_lower": np.float32(-1.3), "weight_upper": np.float32(1.7), "scale": np.float32(0.9)}
    params = tree()
    small = quantize_codebooks(params, {"c": (scalars["weight_lower"], scalars["weight_upper"])})
    codec.save(tmp_path / "small.bq.safetensors", small)
    loaded = codec.load(tmp_path / "small.bq.safetensors")
    seen = [fake_quantize_weights(decode(t)["c"], scalars, config) for t in (params, small, loaded)]
    np.testing.assert_array_equal(seen[1], seen[0])
    np.testing.assert_array_equal(seen[2], seen[0])


def test_leaves_of_a_group_keep_one_codebook(tmp_path):
    small = quantize_codebooks(tree())
    info = codec.save(tmp_path / "small.bq.safetensors", small)
    assert [leaf.table_bytes for leaf in info.leaves] == [8 * 4 + 8, 0, 8 * 6 + 8]
    np.testing.assert_array_equal(decode(codec.load(info.path))["b"], decode(small)["b"])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_training_sees_what_the_file_will_hold(bits):
    books = codebooks(tree())
    rounded = rounded_codebooks(books, bits=bits)
    for name, values in codebooks(quantize_codebooks(tree(), bits=bits)).items():
        np.testing.assert_allclose(rounded[name], values, rtol=1e-5, atol=1e-6)
    grads = jax.jit(jax.grad(lambda books: sum((3 * x).sum() for x in rounded_codebooks(books, bits=bits).values())))(books)
    assert all(bool((x == 3).all()) for x in grads.values())


@pytest.mark.parametrize("value", [0.0, 2.5, -1e-30])
def test_entries_that_are_all_alike(value):
    leaf = Clustered(np.zeros(4, np.uint8), np.full((1, 2), value, np.float32), (4, 2), np.float32)
    np.testing.assert_allclose(decode(quantize_codebooks({"w": leaf}))["w"], np.full((4, 2), value), rtol=1e-6)
    np.testing.assert_allclose(rounded_codebooks({"w": leaf.codebook})["w"], leaf.codebook, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 9}, "1 to 8 bits, got 9"),
        ({"intervals": {"d": (0, 1)}}, r"intervals name \['d'\]; the codebooks are \['c', 'group g'\]"),
        ({"intervals": {"c": (1.0, 1.0)}}, "interval of codebook 'c' must be finite and not empty"),
        ({"intervals": {"c": (0.0, np.nan)}}, "interval of codebook 'c' must be finite"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_codebooks(tree(), **arguments)


def test_integer_weights_are_refused():
    leaf = Clustered(np.zeros(4, np.uint8), np.zeros((1, 1), np.int8), (4,), np.int8)
    with pytest.raises(ValueError, match="codebook 'w' holds int8"):
        quantize_codebooks({"w": leaf})
