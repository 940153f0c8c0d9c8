"""MobileNets and the depthwise convolution: equal to XLA's grouped one, published numbers of parameters, shapes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.tree import named_leaves
from bqjax.models.depthwise import DepthwiseConv, depthwise_conv
from bqjax.models.mobilenet import InvertedResidual, MobileNetV1, MobileNetV2, SeparableBlock


@functools.cache
def abstract(network, **arguments):
    """A network without values. Tracing one takes a second: tests share them, and change none."""
    return nnx.eval_shape(lambda: network(**arguments, rngs=nnx.Rngs(0)))


def sizes(network, **arguments):
    return {name: leaf.size for name, leaf in named_leaves(nnx_params(abstract(network, **arguments))).items()}


def filled(model, seed=0):
    """An abstract model with values from NumPy: drawing each layer's in JAX compiles for each shape."""
    rng = np.random.default_rng(seed)
    graph, state, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def values(leaf):
        spread = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        value = rng.normal(scale=spread, size=leaf.shape) if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(value, jnp.float32)

    return nnx.merge(graph, jax.tree.map(values, nnx.to_pure_dict(state)), nnx.to_pure_dict(rest))


def image_and_kernel(shape, kernel_size, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape), rng.normal(size=(*kernel_size, 1, shape[-1]))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def by_definition(x, kernel, strides, pads):
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0)))
    kh, kw = kernel.shape[:2]
    rows, columns = (x.shape[1] - kh) // strides[0] + 1, (x.shape[2] - kw) // strides[1] + 1
    out = np.empty((len(x), rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * strides[0] : i * strides[0] + kh, j * strides[1] : j * strides[1] + kw]
            out[:, i, j] = (patch * np.asarray(kernel, np.float64)[None, :, :, 0]).sum(axis=(1, 2))
    return out


def test_depthwise_by_its_definition():
    x, kernel = image_and_kernel((2, 5, 6, 3), (3, 2))
    expected = by_definition(x, kernel, (2, 1), ((1, 2), (0, 1)))
    for implementation in ("shifted", "grouped"):
        y = depthwise_conv(x, kernel, (2, 1), ((1, 2), (0, 1)), implementation=implementation)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


PADDINGS = ["SAME", "VALID", "same", ((1, 1), (1, 1)), ((0, 2), (3, 1)), ((-1, 0), (1, -1))]
STRIDES = [(1, 1), (2, 2), (3, 1)]
IMAGES = [((2, 8, 8, 4), (3, 3)), ((1, 7, 9, 3), (3, 3)), ((1, 7, 6, 1), (5, 2))]


@pytest.mark.parametrize("padding", range(len(PADDINGS)))
@pytest.mark.parametrize("strides", range(len(STRIDES)))
def test_shifted_equals_grouped(strides, padding):
    # Every pair of padding, strides and image, in a third of the combinations.
    x, kernel = image_and_kernel(*IMAGES[(strides + padding) % 3])

    @jax.jit
    def both(x, kernel):
        return tuple(
            depthwise_conv(x, kernel, STRIDES[strides], PADDINGS[padding], implementation=implementation)
            for implementation in ("shifted", "grouped")
        )

    shifted, grouped = both(x, kernel)
    assert shifted.shape == grouped.shape
    np.testing.assert_allclose(shifted, grouped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_gradients_are_those_of_the_grouped_convolution(strides):
    x, kernel = image_and_kernel((2, 7, 8, 3), (3, 3))

    def loss(x, kernel, implementation):
        y = depthwise_conv(x, kernel, strides, ((1, 1), (1, 1)), implementation=implementation)
        return jnp.sum(jnp.sin(y))

    gradient = jax.grad(loss, (0, 1))
    shifted, grouped = jax.jit(lambda x, kernel: [gradient(x, kernel, name) for name in ("shifted", "grouped")])(x, kernel)
    for a, b in zip(shifted, grouped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_kernels_under_vmap():
    x, kernel = image_and_kernel((1, 6, 6, 2), (3, 3))
    kernels = jnp.stack([kernel, 2 * kernel])
    ys = jax.vmap(lambda kernel: depthwise_conv(x, kernel))(kernels)
    np.testing.assert_allclose(ys[1], 2 * depthwise_conv(x, kernel), rtol=1e-6)


def test_half_precision_is_summed_in_float32():
    x, kernel = image_and_kernel((1, 8, 8, 2), (3, 3), jnp.bfloat16)
    y = depthwise_conv(x, kernel, implementation="shifted")
    assert y.dtype == jnp.bfloat16
    expected = depthwise_conv(x.astype(jnp.float32), kernel.astype(jnp.float32), implementation="shifted")
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
    assert depthwise_conv(x, kernel.astype(jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize(("backend", "grouped"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_the_backend_chooses(monkeypatch, backend, grouped):
    x, kernel = image_and_kernel((1, 4, 4, 2), (3, 3))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    # A function of its own, as traces of one and the same function are cached.
    jaxpr = jax.make_jaxpr(lambda x, kernel: depthwise_conv(x, kernel))(x, kernel)
    primitives = {str(equation.primitive) for equation in jaxpr.eqns}
    assert (str(lax.conv_general_dilated_p) in primitives) is grouped


@pytest.mark.parametrize(
    ("shape", "kernel", "arguments", "message"),
    [
        ((4, 4, 2), (3, 3, 1, 2), {}, r"x must be \[n, h, w, c\] .*got \(4, 4, 2\)"),
        ((1, 4, 4, 2), (3, 3, 1, 3), {}, r"\(3, 3, 1, 3\)"),
        ((1, 4, 4, 2), (3, 3, 2, 1), {}, r"\(3, 3, 2, 1\)"),
        ((1, 4, 4, 2), (3, 3, 1, 2), {"strides": (0, 1)}, r"strides must be .*\(0, 1\)"),
        ((1, 4, 4, 2), (3, 3, 1, 2), {"padding": "FULL"}, "padding must be .*'FULL'"),
        ((1, 4, 4, 2), (3, 3, 1, 2), {"padding": ((1, 1),)}, "padding must be"),
        ((1, 4, 4, 2), (3, 3, 1, 2), {"implementation": "fast"}, "implementation must be .*'fast'"),
        ((1, 2, 4, 2), (3, 3, 1, 2), {"padding": "VALID"}, r"filter of \(3, 3\) does not fit into an image of \(2, 4\)"),
    ],
)
def test_depthwise_arguments(shape, kernel, arguments, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.zeros(shape), jnp.zeros(kernel), **arguments)


def test_layer():
    layer = DepthwiseConv(4, (3, 5), (2, 1), "VALID", implementation="grouped", rngs=nnx.Rngs(0))
    assert {name: p.shape for name, p in nnx_params(layer).items()} == {"kernel": (3, 5, 1, 4)}
    x = jnp.ones((1, 9, 9, 4))
    np.testing.assert_array_equal(layer(x), depthwise_conv(x, layer.kernel[...], (2, 1), "VALID", implementation="grouped"))


@pytest.mark.parametrize(
    ("network", "arguments", "total"),
    [
        # https://keras.io/api/applications/mobilenet (trainable), https://pytorch.org/vision (mobilenet_v2)
        (MobileNetV1, {}, 4_231_976),
        (MobileNetV1, {"width": 0.25}, 470_072),
        (MobileNetV2, {}, 3_504_872),
        (MobileNetV2, {"classes": 10, "small_images": True}, 3_504_872 - 1281 * 990),
    ],
)
def test_published_numbers_of_parameters(network, arguments, total):
    assert sum(sizes(network, **arguments).values()) == total


def test_names():
    v1, v2 = sizes(MobileNetV1), sizes(MobileNetV2)
    assert v1["blocks/12/pointwise/kernel"] == 1024 * 1024
    assert v1["blocks/0/depthwise/kernel"] == 9 * 32
    assert v2["blocks/16/project/kernel"] == 960 * 320
    assert "blocks/0/expand/kernel" not in v2
    assert {"conv1/kernel", "bn1/scale", "conv2/kernel", "bn2/bias", "linear/kernel", "linear/bias"} <= set(v2)


@pytest.mark.parametrize("network", [MobileNetV1, MobileNetV2])
@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_width_must_be_positive(network, width):
    with pytest.raises(ValueError, match="width must be positive"):
        network(width=width, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("arguments", "size", "seen"), [({}, 224, 7), ({"classes": 10, "small_images": True}, 32, 4)])
def test_the_last_stage_sees_the_expected_image(arguments, size, seen):
    model = abstract(MobileNetV2, **arguments)
    strides = [model.conv1.strides[0], *(block.depthwise.strides[0] for block in model.blocks)]
    assert size // np.prod(strides) == seen


def test_separable_block():
    block = nnx.view(filled(nnx.eval_shape(lambda: SeparableBlock(3, 8, 2, rngs=nnx.Rngs(0)))), use_running_average=True)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))

    def normalise(y, bn):
        mean, var, scale, bias = (np.asarray(v[...])[None, None, None] for v in (bn.mean, bn.var, bn.scale, bn.bias))
        return np.clip((y - mean) / np.sqrt(var + 1e-5) * scale + bias, 0, 6)

    y = normalise(by_definition(x, block.depthwise.kernel[...], (2, 2), ((1, 1), (1, 1))), block.bn1)
    y = normalise(y @ np.asarray(block.pointwise.kernel[0, 0]), block.bn2)
    np.testing.assert_allclose(block(jnp.asarray(x, jnp.float32)), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cin", "cout", "stride", "adds"), [(4, 4, 1, True), (4, 6, 1, False), (4, 4, 2, False)])
def test_inverted_residual_adds_where_nothing_changes_shape(cin, cout, stride, adds):
    block = filled(nnx.eval_shape(lambda: InvertedResidual(cin, cout, stride, 6, rngs=nnx.Rngs(0))))
    block.bn3.scale[...], block.bn3.bias[...] = jnp.zeros(cout), jnp.zeros(cout)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, cin)), jnp.float32)
    y = nnx.view(block, use_running_average=True)(x)
    np.testing.assert_array_equal(y, x if adds else np.zeros((1, 4 // stride, 4 // stride, cout)))


def test_a_block_has_gradients():
    model = filled(nnx.eval_shape(lambda: InvertedResidual(4, 4, 1, 2, rngs=nnx.Rngs(0))))
    apply, params = nnx_apply(model), nnx_params(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 4)), jnp.float32)
    grads = named_leaves(jax.jit(jax.grad(lambda params: jnp.sum(apply(params, x) ** 2)))(params))
    assert all(0 < float(jnp.abs(grad).max()) < 1e6 for grad in grads.values())


@pytest.mark.parametrize("network", [MobileNetV1, pytest.param(MobileNetV2, marks=pytest.mark.slow)])
def test_networks_run_from_their_parameters(network):
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    arguments = {"small_images": True} if network is MobileNetV2 else {}
    model = nnx.eval_shape(lambda: network(10, 0.125, **arguments, rngs=nnx.Rngs(0)))
    if network is MobileNetV2:
        model.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    model = filled(model)
    run, params = jax.jit(nnx_apply(model)), nnx_params(model)
    logits = np.asarray(run(params, x))
    assert logits.shape == (2, 10)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 0
    np.testing.assert_array_equal(logits, run(params, x))  # no dropout in evaluation mode
