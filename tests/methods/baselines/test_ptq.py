"""Post-training quantization against NumPy, and corrected biases against what layers put out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bqjax.core.leaves import Affine, decode
from bqjax.core.rules import Rule
from bqjax.methods.baselines.ptq import PTQConfig, correct_biases, quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share


def weights(*shape, seed=0, shift=0.0):
    return (np.random.default_rng(seed).standard_t(4, shape) + shift).astype(np.float32)


def by_numpy(w, low, high, bits, symmetric):
    """Codes, scale and zero point of one range, in float64."""
    top = 2 ** (bits - 1) - 1
    first = -top if symmetric else -top - 1
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = max(-low, high) / top if symmetric else (high - low) / (top - first)
    zero = 0 if symmetric else int(np.clip(np.round(first - low / scale), first, top))
    return np.clip(np.round(w.astype(np.float64) / scale) + zero, first, top), scale, zero


def check(leaf, w, ends, bits, symmetric):
    leaf.validate()
    slices = [w] if leaf.axis is None else list(np.moveaxis(w, leaf.axis, 0))
    got = [np.asarray(leaf.codes)] if leaf.axis is None else list(np.moveaxis(np.asarray(leaf.codes), leaf.axis, 0))
    for part, codes, scale, zero in zip(slices, got, np.atleast_1d(leaf.scale), np.atleast_1d(leaf.zero_point), strict=True):
        expected, s, z = by_numpy(part, *ends(part), bits, symmetric)
        np.testing.assert_allclose(scale, s, rtol=1e-5)  # percentiles of float32 ranks
        assert zero == z
        # A weight on a boundary between two codes may go to either.
        apart = expected != codes
        assert apart.mean() < 1e-2 and np.abs(expected - codes).max() <= 1
        np.testing.assert_allclose(np.abs(part / s - np.floor(part / s))[apart], 0.5, atol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("axis", "bits"), [(None, 8), (-1, 4), (0, 3)])
def test_minmax(symmetric, axis, bits):
    w = weights(3, 3, 6, 8, shift=0.3)
    leaf = quantize({"w": w}, config=PTQConfig(bits=bits, axis=axis, symmetric=symmetric))["w"]
    assert leaf.axis == (None if axis is None else axis % 4)
    check(leaf, w, lambda p: (p.min(), p.max()), bits, symmetric)
    # Nothing is cut off: half a step is the most that is lost, half a step more where the zero point was rounded.
    scale = np.asarray(leaf.scale) if axis is None else np.moveaxis(np.asarray(leaf.scale).reshape(-1, 1, 1, 1), 0, leaf.axis)
    assert (np.abs(decode(leaf) - w) <= scale * (0.5001 if symmetric else 1.0001)).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_percentile(symmetric):
    w = weights(500, 4, shift=0.1)

    def ends(part):
        return (0, np.percentile(np.abs(part), 98)) if symmetric else np.percentile(part, [1, 99])

    leaf = quantize({"w": w}, config=PTQConfig(bits=4, symmetric=symmetric, limits="percentile", percentile=98))["w"]
    check(leaf, w, ends, 4, symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_finds_the_best_of_its_ranges(symmetric):
    w = weights(400, 5, shift=0.2)

    def error(part, factor):
        codes, scale, zero = by_numpy(part, part.min() * factor, part.max() * factor, 4, symmetric)
        return np.square(part - (codes - zero) * scale).sum()

    leaf = quantize({"w": w}, config=PTQConfig(bits=4, symmetric=symmetric, limits="mse"))["w"]
    leaf.validate()
    for part, values in zip(w.T, np.asarray(decode(leaf)).T, strict=True):
        best = min(error(part, 1 - i / 72) for i in range(64))
        np.testing.assert_allclose(np.square(part - values).sum(), best, rtol=1e-4)
        assert best < 0.9 * error(part, 1)


def test_zero_stays_zero_and_extremes_are_no_trouble():
    w = np.zeros((6, 5), np.float32)
    w[:, 1] = [0, 1e38, -3e38, 3e38, 1, 0]
    w[:, 2] = [0, 1e-45, 0, -1e-40, 0, 0]
    w[:, 3] = [0, 5, 6, 7, 8, 9]
    w[:, 4] = [0, -5, -6, -7, -8, -9]
    for symmetric, scale_dtype in ((True, "float32"), (False, "float32"), (True, "bfloat16"), (False, "bfloat16")):
        for limits in ("minmax", "percentile", "mse"):
            config = PTQConfig(symmetric=symmetric, limits=limits, percentile=100, scale_dtype=scale_dtype)
            leaf = quantize({"w": w}, config=config)["w"]
            leaf.validate()
            got = np.asarray(decode(leaf))
            assert np.isfinite(got).all()
            assert not got[w == 0].any()
            np.testing.assert_allclose(got, w, rtol=0.02, atol=3e36 if limits == "minmax" else 3e38)
            np.testing.assert_allclose(got[:, 2:], w[:, 2:], atol=0.04)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_short_types_and_jit(dtype):
    tree = {"w": jnp.asarray(weights(30, 40), dtype), "v": jnp.ones(3)}
    leaf = quantize(tree)["w"]
    assert (leaf.scale.dtype, decode(leaf).dtype) == (jnp.float32, dtype)
    assert float(jnp.abs(decode(leaf).astype(jnp.float32) - tree["w"].astype(jnp.float32)).max()) < 0.06
    for a, b in zip(jax.tree.leaves(quantize(tree)), jax.tree.leaves(jax.jit(quantize)(tree)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scales_of_two_bytes():
    w = weights(64, 16)
    w[:, 0] *= 3.4e38 / np.abs(w[:, 0]).max()  # bfloat16 ends below
    wide, short = (quantize({"w": w}, config=PTQConfig(bits=2, limits="mse", scale_dtype=d))["w"] for d in ("float32", "bfloat16"))
    short.validate()
    assert (short.scale.dtype, short.codes.dtype) == (jnp.bfloat16, jnp.int8)
    # What is lost to the nearest of the range's 64 parts is more than what is lost to the nearest scale.
    np.testing.assert_allclose(np.asarray(short.scale, np.float32), wide.scale, rtol=0.03)
    with np.errstate(over="ignore"):
        lost = [np.square(np.asarray(decode(leaf) - w, np.float64)).sum(0) for leaf in (wide, short)]
    np.testing.assert_allclose(lost[1], lost[0], rtol=2e-3)
    # Codes are those of the scale that is stored.
    expected = np.clip(np.rint(w / np.asarray(short.scale, np.float32)), -1, 1)
    assert (np.asarray(short.codes) != expected).mean() < 1e-2
    with pytest.raises(ValueError, match='scale_dtype must be "float32" or "bfloat16", got \'float16\''):
        PTQConfig(scale_dtype="float16")


def test_rules():
    tree = {"a": weights(8, 8), "b": weights(8, 8), "c": weights(8)}
    rules = [Rule("a", 4), Rule("b", PTQConfig(axis=0, bits=2)), Rule("c")]
    leaves = quantize(tree, rules, config=PTQConfig(symmetric=False))
    assert [leaves[n].axis for n in "abc"] == [1, 0, None]
    assert [int(jnp.abs(leaves[n].codes).max()) for n in "ab"] == [8, 1]
    assert all(isinstance(leaf, Affine) for leaf in leaves.values())


def test_biases_make_up_for_what_layers_lose():
    """The means of a layer's outputs are those before compression, exactly so for the inputs measured."""
    tree = {"conv": {"kernel": weights(3, 3, 4, 8), "bias": weights(8)}, "head": {"kernel": weights(8, 5), "b": weights(5)}}
    tree["conv"]["bias"] = tree["conv"]["bias"].astype(np.float16)
    x, h = np.random.default_rng(1).exponential(size=(16, 8, 8, 4)).astype(np.float32), weights(64, 8, shift=1)
    for compressed in (quantize(tree, config=PTQConfig(bits=3)), kmeans_share(tree, 3)):
        means = {"conv/kernel": x.mean((0, 1, 2)), "head/kernel": h.mean(0)}
        fixed = correct_biases(tree, compressed, means, {"head/kernel": "head/b"})
        assert fixed["conv"]["bias"].dtype == np.float16
        wanted, plain, got = (
            (h @ np.asarray(p["kernel"]) + np.asarray(p["b"])).mean(0)
            for p in (tree["head"], decode(compressed)["head"], decode(fixed)["head"])
        )
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        assert np.abs(plain - wanted).max() > 1e-2

        def means_of(p, bias):
            y = lax.conv_general_dilated(x, p, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return np.asarray(y.mean((0, 1, 2)) + jnp.asarray(bias, jnp.float32), np.float64)

        wanted = means_of(tree["conv"]["kernel"], tree["conv"]["bias"])
        plain = means_of(decode(compressed)["conv"]["kernel"], tree["conv"]["bias"])
        got = means_of(decode(fixed)["conv"]["kernel"], fixed["conv"]["bias"])
        assert np.abs(got - wanted).max() < 0.2 * np.abs(plain - wanted).max()


# Of four inputs: two groups of two with three outputs each; depthwise, with two outputs an input.
@pytest.mark.parametrize("shape", [(3, 3, 2, 6), (3, 3, 1, 8)])
def test_biases_of_grouped_and_depthwise_convolutions(shape):
    kernel, mean, groups = weights(*shape), np.float32([1, 2, 3, 4]), 4 // shape[2]
    tree = {"kernel": kernel, "bias": np.zeros(shape[-1], np.float32)}
    compressed = quantize(tree, config=PTQConfig(bits=2))
    x = np.broadcast_to(mean, (1, 3, 3, 4)).astype(np.float32)

    def out(w):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=layout, feature_group_count=groups)

    lost = out(kernel) - out(decode(compressed)["kernel"])
    np.testing.assert_allclose(correct_biases(tree, compressed, {"kernel": mean})["bias"], lost[0, 0, 0], rtol=1e-4, atol=1e-5)


def test_refusals():
    w = weights(4, 4)
    for bits in (1, 9, 4.0, True):
        with pytest.raises(ValueError, match="bits must be an integer from 2 to 8"):
            PTQConfig(bits=bits)
    with pytest.raises(ValueError, match="limits must be"):
        PTQConfig(limits="max")
    for percentile in (50, 101, np.nan):
        with pytest.raises(ValueError, match="percentile must be above 50"):
            PTQConfig(percentile=percentile)
    with pytest.raises(ValueError, match="'w' has 2 dimensions and no axis 2"):
        quantize({"w": w}, config=PTQConfig(axis=2))
    with pytest.raises(ValueError, match="'w' is in group 'g', but scales are not shared"):
        quantize({"w": w}, [Rule("w", group="g")])
    with pytest.raises(ValueError, match="'w' is of integers already"):
        quantize({"w": w.astype(np.int8)}, [Rule("w")])
    with pytest.raises(ValueError, match="setting must be a PTQConfig or a number of bits, got '8'"):
        quantize({"w": w}, [Rule("w", "8")])
    with pytest.raises(ValueError, match="'w' holds 16 NaN"):
        quantize({"w": w * np.nan})
    tree = {"kernel": w, "bias": np.zeros(3, np.float32), "scale": np.ones(4, np.float32)}
    compressed = quantize(tree)
    mean = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="no leaf is named 'kernle'; did you mean 'kernel'"):
        correct_biases(tree, compressed, {"kernle": mean})
    with pytest.raises(ValueError, match="'scale' is no compressed kernel"):
        correct_biases(tree, compressed, {"scale": mean})
    with pytest.raises(ValueError, match=r"needs a mean input \[4 \* groups\], got \(3,\)"):
        correct_biases(tree, compressed, {"kernel": mean[:3]})
    with pytest.raises(ValueError, match="mean_inputs of kernel' holds 4 NaN"):
        correct_biases(tree, compressed, {"kernel": mean * np.nan})
    with pytest.raises(ValueError, match=r"needs a bias of shape \(4,\), but 'bias' is none"):
        correct_biases(tree, compressed, {"kernel": mean})
