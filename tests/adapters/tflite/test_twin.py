"""The twin against the LiteRT interpreter, code by code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import warnings

from ai_edge_litert.interpreter import Interpreter, OpResolverType
from builder import network

from bqjax.adapters.tflite.examples import grey_int8, read_images, read_spectra, to_int8
from bqjax.adapters.tflite.graph import Graph, Operator, parse
from bqjax.adapters.tflite.twin import build
from bqjax.adapters.tflite.weights import params, weight_names
from train.data import cifar10

RESOLVERS = {"builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, "reference": OpResolverType.BUILTIN_REF}


def interpret(content, x, kernels="builtin"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=RESOLVERS[kernels])
    interpreter.allocate_tensors()
    rows = []
    for row in x:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.stack(rows)


def inputs(graph, n, seed=0):
    t = graph.tensors[graph.inputs[0]]
    info = np.iinfo(t.dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, (n, *t.shape[1:])).astype(t.dtype)


@pytest.mark.parametrize("kernels", ["builtin", "reference"])
@pytest.mark.parametrize(("dtype", "per_channel"), [(np.int8, True), (np.int8, False), (np.uint8, False)])
def test_an_inception_block_with_a_residual_sum(dtype, per_channel, kernels):
    content = network(dtype, per_channel)
    graph = parse(content)
    x = inputs(graph, 16)
    (got,) = jax.jit(build(graph, kernels).apply)(params(graph), x)
    want = interpret(content, x, kernels)
    assert got.dtype == dtype
    assert len(np.unique(want)) > 10  # the outputs are not saturated
    np.testing.assert_array_equal(np.asarray(got), want)


def test_codes_may_come_as_floats_or_wide_integers():
    graph = parse(network(np.uint8))
    x, p, twin = inputs(graph, 2), params(graph), build(graph)
    want = twin.apply(p, x)[0]
    for dtype in (np.float32, np.int32):
        cast = {k: {**v, "codes": v["codes"].astype(dtype), "bias": v["bias"].astype(dtype)} for k, v in p.items()}
        np.testing.assert_array_equal(twin.apply(cast, x)[0], want)


def test_real_numbers_follow_the_integers_and_have_gradients():
    graph = parse(network(np.int8, True))
    x, twin = inputs(graph, 8), build(graph)
    p = {k: {**v, "codes": v["codes"].astype(np.float32), "bias": v["bias"].astype(np.float32)} for k, v in params(graph).items()}
    t = graph.tensors[twin.logits_index]
    codes = (np.asarray(twin.apply_logits(p, x), np.float32) - t.zero_point[0]) * t.scale[0]
    np.testing.assert_allclose(twin.apply_real(p, x), codes, atol=6 * t.scale[0])
    name = list(p)[-1]

    def loss(codes):
        return jnp.sum(twin.apply_real({**p, name: {**p[name], "codes": codes}}, x) ** 2)

    gradient = jax.grad(loss)(p[name]["codes"])
    direction = np.random.default_rng(0).normal(size=gradient.shape).astype(np.float32)
    _, tangent = jax.jvp(loss, (p[name]["codes"],), (direction,))
    assert np.isfinite(gradient).all() and np.any(gradient)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), tangent, rtol=1e-3)


def test_an_operator_that_is_not_supported_is_named():
    graph = parse(network())
    with pytest.raises(ValueError, match=r"operator 0, LSTM, .*interpreter-based evaluation.*CONV_2D"):
        build(Graph(graph.tensors, (Operator("LSTM", (), (0,), {}), *graph.operators), graph.inputs, graph.outputs))


def test_wrong_inputs():
    graph = parse(network())
    twin, x, p = build(graph), inputs(graph, 2), params(graph)
    with pytest.raises(ValueError, match=r"x must be int8 \[n, 9, 9, 3\]"):
        twin.apply(p, x[:, :5])
    with pytest.raises(ValueError, match="lack the weights"):
        twin.apply({}, x)
    name = next(iter(p))
    with pytest.raises(ValueError, match="codes of"):
        twin.apply({**p, name: {**p[name], "codes": np.zeros(3, np.int8)}}, x)
    with pytest.raises(ValueError, match="kernels must be"):
        build(graph, "fast")  # type: ignore[arg-type]


def test_names_are_the_tensors_and_unique():
    graph = parse(network())
    assert list(weight_names(graph).values()) == list(params(graph))
    same = tuple(t.__class__(**{**vars(t), "name": "w"}) for t in graph.tensors)
    names = weight_names(Graph(same, graph.operators, graph.inputs, graph.outputs))
    assert all(name == f"w#{index}" for index, name in names.items())


@pytest.mark.data
@pytest.mark.parametrize("model", ["kws_ds_cnn_int8", "resnet8_cifar10_int8", "person_detect"])
def test_published_models(model, data_dir):
    n = 20
    if model.startswith("kws"):
        x = read_spectra(data_dir / "kws" / "kws01.npz")[0][:n]
    elif model.startswith("resnet8"):
        x = to_int8(cifar10(data_dir, "test")[0][:n])
    else:
        x = grey_int8(read_images(data_dir / "vww" / "vww_500.zip", 96, n)[0])
    content = (data_dir / "tflite" / f"{model}.tflite").read_bytes()
    graph = parse(content)
    np.testing.assert_array_equal(jax.jit(build(graph).apply)(params(graph), x)[0], interpret(content, x))
