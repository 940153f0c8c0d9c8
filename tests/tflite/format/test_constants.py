"""All constants of a file: each once, with its place, its uses and the reason why it is left."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import flatbuffers
import kinds
from ai_edge_litert import schema_py_generated as schema
from builder import network

from bqjax.tflite.format.constants import Use, constants, reported
from bqjax.tflite.format.model import parse_model
from bqjax.tflite.format.names import OPERATORS, TYPES

# What reports list: name, type, values, and why it is left.
LISTED = {
    "resource_variables": [("t2", "INT8", 3072, ""), ("t1", "INT8", 2000, "INT8, input 1 of ASSIGN_VARIABLE")],
    "signatures": [("t2", "INT8", 3072, ""), ("t5", "INT8", 1536, "")],
    "four_bits": [("t1", "INT4", 4096, "INT4 weight of FULLY_CONNECTED"), ("t4", "INT8", 2048, "")],
    "half_floats": [("t6", "INT8", 1536, ""), ("t1", "FLOAT16", 3072, "FLOAT16, input 0 of DEQUANTIZE")],
    "hybrid": [("t2", "INT8", 3072, "")],
    "sparse": [("t1", "INT8", 1200, "sparse INT8 weight of FULLY_CONNECTED"), ("t4", "INT8", 2048, "")],
    "floats": [("t1", "FLOAT32", 3072, "FLOAT32 weight of FULLY_CONNECTED")],
    "recurrent": [
        ("t11", "INT8", 1280, ""),
        *((f"t{i}", "INT8", 1280, f"INT8, input {i} of UNIDIRECTIONAL_SEQUENCE_LSTM") for i in range(1, 5)),
        ("t8", "INT8", 1056, "INT8, input 8 of UNIDIRECTIONAL_SEQUENCE_LSTM"),
    ],
    "other_operators": [
        ("t14", "INT8", 2048, ""),
        ("t1", "INT8", 3072, "INT8, input 1 of SVDF"),
        ("t2", "INT8", 1152, "INT8, input 2 of SVDF"),
        ("t5", "INT8", 1152, "INT8, input 1 of TRANSPOSE_CONV"),
        ("t7", "INT8", 4096, "INT8, input 1 of BATCH_MATMUL"),
        ("t10", "INT8", 6400, "INT8, input 1 of EMBEDDING_LOOKUP"),
    ],
}


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.__name__)
def test_every_large_constant_is_listed_with_its_reason(kind):
    content = kind()
    found = constants(content)
    listed = [(c.name.removesuffix(" of subgraph 1"), c.type, c.n_weights, c.left) for c in reported(found)]
    assert listed == LISTED[kind.__name__]
    # Against the schema's own code: each buffer once, byte for byte.
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    buffers = [bytes(b.data) for b in model.buffers if b.data is not None and len(b.data)]
    assert sorted(content[c.start : c.start + c.size] for c in found) == sorted(buffers)
    assert len({c.name for c in found}) == len(found)


def test_uses_are_those_of_all_subgraphs():
    weight, *_ = constants(kinds.signatures())
    assert weight.uses == (Use(0, "FULLY_CONNECTED", 1), Use(1, "FULLY_CONNECTED", 1))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_what_is_not_left_is_what_a_model_lets_change(dtype):
    model = parse_model(network(dtype))
    assert [c.name for c in model.constants if not c.left] == list(model.changeable) == list(model.params)
    assert model.n_weights == sum(layer["codes"].size for layer in model.params.values())


@pytest.mark.parametrize("kind", [k for k in kinds.KINDS if k is not kinds.floats], ids=lambda kind: kind.__name__)
def test_the_8_bit_layers_of_the_first_subgraph_change(kind):
    model = parse_model(kind())
    assert [c.name for c in model.constants if not c.left] == list(model.changeable)


def test_names_and_types_are_those_of_the_schema():
    numbers = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    assert dict(enumerate(OPERATORS)).items() >= {i: n for i, n in numbers.items() if i < len(OPERATORS)}.items()
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    assert {i: name for i, (name, _) in enumerate(TYPES) if i in types} == {i: n for i, n in types.items() if i < len(TYPES)}


def test_a_shape_that_its_bytes_do_not_fit_counts_the_bytes():
    content = kinds.hybrid()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for shape in ([7, 5], [-1, -3072], [2] * 60):
        model.subgraphs[0].tensors[2].shape = shape
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        assert constants(bytes(builder.Output()))[0].n_weights == 3072
