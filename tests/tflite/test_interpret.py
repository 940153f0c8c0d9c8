"""Running models by LiteRT."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import jax
from builder import Builder, network

from bqjax.tflite.format.graph import parse
from bqjax.tflite.format.weights import params
from bqjax.tflite.interpret import interpret
from bqjax.tflite.twin.graph import build


def codes(dtype, n=6):
    info = np.iinfo(dtype)
    return np.random.default_rng(0).integers(info.min, info.max + 1, (n, 9, 9, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_network_runs_and_the_twin_agrees(dtype):
    content, x = network(dtype), codes(dtype)
    got = interpret(content, x, kernels="builtin")
    graph = parse(content)
    assert got.shape == (6, 7) and got.dtype == dtype
    np.testing.assert_array_equal(got, jax.jit(build(graph).apply)(params(graph), x)[0])


def test_examples_are_run_one_by_one_and_in_any_buffer():
    content, x = network(), codes(np.int8)
    got = interpret(content, x)
    assert got.shape == (6, 7) and len(np.unique(got)) > 5
    np.testing.assert_array_equal(interpret(bytearray(content), x[2:4], threads=1), got[2:4])
    assert interpret(content, x[:0]).shape == (0, 7)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (np.zeros((2, 9, 9, 3), np.uint8), r"uint8 \(9, 9, 3\)"),
        (np.zeros((2, 9, 9, 3), np.float32), r"float32 \(9, 9, 3\)"),
        (np.zeros((2, 9, 8, 3), np.int8), r"int8 \(9, 8, 3\)"),
        (np.zeros((9, 9, 3), np.int8), r"int8 \(9, 3\)"),
    ],
)
def test_examples_of_another_kind(x, got):
    with pytest.raises(ValueError, match=rf"the model takes examples of int8 \(9, 9, 3\), got {got}"):
        interpret(network(), x)


def test_a_model_of_two_inputs():
    b = Builder()
    first, second = b.activation([1, 4]), b.activation([1, 4])
    total = b.operator("ADD", [first, second], b.activation([1, 4]), "AddOptions")
    with pytest.raises(ValueError, match="a model of one input and one output is needed, this has 2 and 1"):
        interpret(b.finish_many([first, second], [total]), np.zeros((1, 4), np.int8))


@pytest.mark.parametrize("change", ["stride", "inputs"])
def test_a_model_that_litert_refuses_is_refused_with_its_reason(change):
    from bqjax.tflite.format.model import parse_model
    from bqjax.tflite.twin.graph import unsupported

    b = Builder()
    x = b.activation([1, 4, 4, 2])
    y = b.conv(x, [3, 3, 3, 2], [1, 4, 4, 3])
    if change == "stride":
        b.operators[0].builtinOptions.strideW = 0
    else:
        b.operators[0].inputs = b.operators[0].inputs[:1]
    content = b.finish(x, y)
    with pytest.raises(ValueError, match="LiteRT cannot run the model, convert it again"):
        interpret(content, np.zeros((1, 4, 4, 2), np.int8))
    if change == "inputs":
        with pytest.raises(ValueError, match="nothing to compress"):
            parse_model(content)
    else:
        assert unsupported(parse_model(content).graph) is None
