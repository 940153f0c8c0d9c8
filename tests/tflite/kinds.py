"""Small .tflite files of every kind that people bring: other operators, other types, several subgraphs."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from builder import Builder


def _dense(b, x, shape):
    """A dense layer of ``x`` with 8-bit weights that an entropy coder makes smaller."""
    bias = b.tensor([shape[0]], np.int32, scale=0.0005, data=np.arange(shape[0], dtype=np.int32))
    return b.operator("FULLY_CONNECTED", [x, b.constant(shape), bias], b.activation([1, shape[0]]), "FullyConnectedOptions")


def resource_variables():
    """A second subgraph gives a variable its first value, once."""
    b = Builder()
    b.end_subgraph([], [])
    b.operators = []
    handle = b.tensor([1], kind="RESOURCE")
    b.operator("VAR_HANDLE", [], handle, "VarHandleOptions")
    b.operator("ASSIGN_VARIABLE", [handle, b.constant([40, 50])], handle)
    initial = (b.tensors, b.operators)
    b.tensors, b.operators, b.subgraphs = [], [], []
    x = b.activation([1, 64])
    b.operator("CALL_ONCE", [], x, "CallOnceOptions", initSubgraphIndex=1)
    y = _dense(b, x, [48, 64])
    b.end_subgraph([x], [y])
    b.tensors, b.operators = initial
    return b.finish_many([], [])


def signatures():
    """Two signatures of the same weights, each with its subgraph, and one weight that only the second has."""
    b = Builder()
    x = b.activation([1, 64])
    y = _dense(b, x, [48, 64])
    shared = b.tensors[1:3]
    b.end_subgraph([x], [y], "first")
    x = b.activation([1, 64])
    b.tensors += shared
    h = b.operator("FULLY_CONNECTED", [x, 2, 1], b.activation([1, 48]), "FullyConnectedOptions")
    return b.finish_many([x], [_dense(b, h, [32, 48])], "second")


def four_bits():
    """One weight of 4 bits, two values a byte, beside one of 8."""
    b = Builder()
    x = b.activation([1, 64])
    values = np.clip(np.round(b.rng.normal(0, 1.5, 64 * 64)), -8, 7).astype(int) & 15
    packed = (values[::2] | values[1::2] << 4).astype(np.uint8)
    w = b.tensor([64, 64], scale=np.full(64, 0.1), data=packed, kind="INT4")
    h = b.operator("FULLY_CONNECTED", [x, w, -1], b.activation([1, 64]), "FullyConnectedOptions")
    return b.finish(x, _dense(b, h, [32, 64]))


def half_floats():
    """A float16 weight that an operator turns into float32, beside 8-bit weights."""
    b = Builder()
    x = b.tensor([1, 64], np.float32)
    w = b.operator("DEQUANTIZE", [b.constant([48, 64], np.float16)], b.tensor([48, 64], np.float32))
    h = b.operator("FULLY_CONNECTED", [x, w, -1], b.tensor([1, 48], np.float32), "FullyConnectedOptions")
    h = b.operator("QUANTIZE", [h], b.activation([1, 48]))
    return b.finish(x, _dense(b, h, [32, 48]))


def hybrid():
    """8-bit weights of a float network (dynamic range): inputs and biases are float32."""
    b = Builder()
    x = b.tensor([1, 64], np.float32)
    bias = b.constant([48], np.float32)
    y = b.operator("FULLY_CONNECTED", [x, b.constant([48, 64]), bias], b.tensor([1, 48], np.float32), "FullyConnectedOptions")
    return b.finish(x, y)


def sparse():
    """A weight that stores its non-zero values alone, beside a dense one."""
    b = Builder()
    x = b.activation([1, 64])
    w = b.constant([30, 40])
    b.tensors[w].shape, b.tensors[w].sparsity = [64, 64], schema.SparsityParametersT()
    h = b.operator("FULLY_CONNECTED", [x, w, -1], b.activation([1, 64]), "FullyConnectedOptions")
    return b.finish(x, _dense(b, h, [32, 64]))


def floats():
    """A plain float32 network."""
    b = Builder()
    x = b.tensor([1, 64], np.float32)
    w, bias = b.constant([48, 64], np.float32), b.constant([48], np.float32)
    return b.finish(x, b.operator("FULLY_CONNECTED", [x, w, bias], b.tensor([1, 48], np.float32), "FullyConnectedOptions"))


def recurrent():
    """An LSTM of 8-bit weights, then a dense layer."""
    b = Builder()
    x = b.activation([1, 10, 40])
    inputs = [x, *(b.constant([32, 40]) for _ in range(4)), *(b.constant([32, 32]) for _ in range(3)), b.constant([33, 32])]
    h = b.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, b.activation([1, 32]), "UnidirectionalSequenceLSTMOptions")
    return b.finish(x, _dense(b, h, [40, 32]))


def other_operators():
    """Weights of SVDF, TRANSPOSE_CONV, BATCH_MATMUL and EMBEDDING_LOOKUP, and a dense layer."""
    b = Builder()
    x = b.activation([1, 64])
    h = b.operator("SVDF", [x, b.constant([48, 64]), b.constant([48, 24]), -1], b.activation([1, 64]), "SVDFOptions")
    shape = b.tensor([4], np.int32, data=np.array([1, 8, 8, 8], np.int32))
    h = b.operator("TRANSPOSE_CONV", [shape, b.constant([16, 3, 3, 8]), h], b.activation([1, 64]), "TransposeConvOptions")
    h = b.operator("BATCH_MATMUL", [h, b.constant([64, 64])], b.activation([1, 64]), "BatchMatMulOptions")
    ids = b.tensor([1], np.int32)
    e = b.operator("EMBEDDING_LOOKUP", [ids, b.constant([100, 64])], b.activation([1, 64]))
    h = b.operator("ADD", [h, e], b.activation([1, 64]), "AddOptions")
    return b.finish_many([x, ids], [_dense(b, h, [32, 64])])


def mixed(n_inputs=40):
    """A network that LiteRT runs: layers of 4 and of 8 bits, one whose weights serve another operator too, a second signature."""
    b = Builder()
    x = b.activation([1, n_inputs])
    values = b.rng.integers(-7, 8, 64 * n_inputs) & 15
    packed = (values[::2] | values[1::2] << 4).astype(np.uint8)
    four = b.tensor([64, n_inputs], scale=np.full(64, 0.01), data=packed, kind="INT4")
    none = schema.ActivationFunctionType.NONE
    dense = lambda x, w, n: b.operator(  # noqa: E731
        "FULLY_CONNECTED", [x, w, -1], b.activation([1, n]), "FullyConnectedOptions", fusedActivationFunction=none
    )
    h = dense(x, four, 64)
    fixed = b.constant([64, 64], scale=0.003, zero=0)
    h = dense(h, fixed, 64)
    b.operator("SHAPE", [fixed], b.tensor([2], np.int32), "ShapeOptions", outType=schema.TensorType.INT32)
    y = dense(h, b.constant([10, 64], scale=0.005, zero=0), 10)
    b.end_subgraph([x], [y], "first")
    x = b.activation([1, 64])
    return b.finish_many([x], [dense(x, b.constant([48, 64], zero=0), 48)], "second")


KINDS = (resource_variables, signatures, four_bits, half_floats, hybrid, sparse, floats, recurrent, other_operators)
