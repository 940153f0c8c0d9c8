"""Rows of a layer's input against the layer's own arithmetic."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bqjax.tflite.codes.layer_stats import Measured, Moments, input_rows, layer_layout, layer_stats, same_pads


def operator(kind, padding="SAME", stride=(1, 1), dilation=(1, 1)):
    options = {"padding": padding, "stride_h": stride[0], "stride_w": stride[1]}
    return SimpleNamespace(kind=kind, options={**options, "dilation_hfactor": dilation[0], "dilation_wfactor": dilation[1]})


def apply(rows, weight, kind):
    return np.einsum("gpd,grd->pgr", np.asarray(rows), layer_layout(kind, weight.shape).to_rows(weight)).reshape(rows.shape[1], -1)


CASES = [
    ("SAME", (1, 1), (1, 1)),
    ("SAME", (2, 2), (1, 1)),
    ("VALID", (2, 1), (1, 1)),
    ("VALID", (1, 1), (2, 1)),
    ("SAME", (1, 1), (1, 2)),
]


@pytest.mark.parametrize(("padding", "stride", "dilation"), CASES)
def test_rows_times_weights_are_the_convolution(padding, stride, dilation):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 7, 8, 3)).astype(np.float32), rng.normal(size=(5, 3, 2, 3)).astype(np.float32)
    layer = operator("CONV_2D", padding, stride, dilation)

    @jax.jit
    def run(x, w):
        rows = input_rows(x, layer, w.shape)
        some = input_rows(x, layer, w.shape, jnp.asarray([17, 0, rows.shape[1] - 1]))
        dimensions = ("NHWC", "OHWI", "NHWC")
        return rows, some, lax.conv_general_dilated(x, w, stride, padding, rhs_dilation=dilation, dimension_numbers=dimensions)

    rows, some, expected = map(np.asarray, run(x, w))
    np.testing.assert_allclose(apply(rows, w, "CONV_2D"), expected.reshape(-1, 5), atol=1e-5)
    np.testing.assert_array_equal(some, rows[:, [17, 0, -1]])


@pytest.mark.parametrize("multiplier", [1, 3])
def test_rows_of_a_depthwise_layer(multiplier):
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 6, 5, 4)).astype(np.float32), rng.normal(size=(1, 3, 3, 4 * multiplier)).astype(np.float32)
    layer = operator("DEPTHWISE_CONV_2D", stride=(2, 2))
    rows = jax.jit(lambda x: input_rows(x, layer, w.shape))(x)
    expected = lax.conv_general_dilated(
        x, np.moveaxis(w, 0, 2), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    np.testing.assert_allclose(apply(rows, w, "DEPTHWISE_CONV_2D"), np.asarray(expected).reshape(-1, 4 * multiplier), atol=1e-5)


def test_rows_of_a_dense_layer():
    x, w = np.ones((3, 2, 2)), np.arange(20.0).reshape(5, 4)
    rows = input_rows(jnp.asarray(x), operator("FULLY_CONNECTED"), w.shape)
    np.testing.assert_allclose(apply(rows, w, "FULLY_CONNECTED"), x.reshape(3, 4) @ w.T)


@pytest.mark.parametrize(
    ("kind", "shape"), [("CONV_2D", (5, 3, 2, 4)), ("DEPTHWISE_CONV_2D", (1, 3, 2, 6)), ("FULLY_CONNECTED", (5, 4))]
)
def test_rows_of_weights_and_back(kind, shape):
    w = np.arange(np.prod(shape)).reshape(shape)
    layout = layer_layout(kind, shape)
    rows = layout.to_rows(w)
    assert rows.ndim == 3 and np.array_equal(layout.to_leaf(rows), w)


def test_pads_put_the_odd_zero_behind():
    assert same_pads(224, 3, 2, 1) == (0, 1) and same_pads(7, 3, 1, 1) == (1, 1) and same_pads(5, 2, 1, 3) == (1, 2)


def test_moments_are_means_over_the_batches():
    rng = np.random.default_rng(2)
    op, shape = operator("FULLY_CONNECTED"), (2, 4)
    batches = [rng.normal(size=(n, 4)).astype(np.float32) for n in (10, 10)]
    moments = Moments(op, shape, 100, jax.random.key(0))
    for batch in batches:
        moments.add(jnp.asarray(batch))
    second, mean, rows = moments.result()
    assert rows == 20
    x = np.concatenate(batches)
    np.testing.assert_allclose(second[0], x.T @ x / 20, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean[0], x.mean(0), rtol=1e-5, atol=1e-6)


def test_moments_of_few_positions_are_close():
    x = np.random.default_rng(3).normal(size=(1, 64, 64, 2)).astype(np.float32)
    op, shape = operator("CONV_2D"), (1, 1, 1, 2)
    moments = Moments(op, shape, 1000, jax.random.key(0))
    moments.add(jnp.asarray(x))
    second, _, rows = moments.result()
    assert rows == 1000
    np.testing.assert_allclose(second[0], np.eye(2), atol=0.15)


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no inputs"):
        Moments(operator("FULLY_CONNECTED"), (1, 1), 1, jax.random.key(0)).result()


def test_importance_of_outputs_is_found_back():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    second = x.T @ x / 500
    g = np.array([1.0, 9.0])
    single = g[:, None] * np.diag(second)[None, :]
    stats = layer_stats(Measured(second[None].astype(np.float32), x.mean(0)[None].astype(np.float32), 500, single[None]))
    np.testing.assert_allclose(np.asarray(stats.importance)[0], g + 0.01 * g.mean(), rtol=1e-5)


def test_few_rows_are_trusted_less():
    second = np.diag(np.arange(1.0, 5)).astype(np.float32)[None]
    factors = [
        layer_stats(Measured(second, np.zeros((1, 4), np.float32), rows, np.ones((1, 2, 4)))).factor[0] for rows in (2, 10**6)
    ]
    spread = [np.ptp(np.log(np.diag(f))) for f in factors]
    assert spread[0] < spread[1]
