"""Small quantized .tflite files, built through the schema's object API."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

CODES = {
    np.dtype(np.int8): "INT8",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int32): "INT32",
    np.dtype(np.float32): "FLOAT32",
    np.dtype(np.float16): "FLOAT16",
}


class Builder:
    """Adds tensors and operators one by one; ``finish`` gives the file."""

    def __init__(self, dtype=np.int8, seed=0):
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.tensors, self.operators, self.codes, self.subgraphs, self.signatures = [], [], [], [], []
        self.buffers = [schema.BufferT()]
        self.shapes = []

    def tensor(self, shape, dtype=None, scale=None, zero=None, data=None, axis=0, kind=None):
        t = schema.TensorT()
        t.shape = list(shape)
        t.type = getattr(schema.TensorType, kind or CODES[np.dtype(dtype or self.dtype)])
        t.name = f"t{len(self.tensors)}".encode()
        t.buffer = 0
        if scale is not None:
            q = schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32))
            q.zeroPoint = np.broadcast_to(np.asarray(zero if zero is not None else 0, np.int64), q.scale.shape).copy()
            q.quantizedDimension = axis
            t.quantization = q
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            t.buffer = len(self.buffers) - 1
        self.tensors.append(t)
        return len(self.tensors) - 1

    def operator(self, kind, inputs, output, options=None, **fields):
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = {"DEPTHWISE_CONV_2D": 3, "CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1, "SHAPE": 1}.get(kind, 2)
        self.codes.append(code)
        o = schema.OperatorT()
        o.opcodeIndex = len(self.codes) - 1
        o.inputs, o.outputs = list(inputs), [output]
        if options:
            o.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            o.builtinOptions = getattr(schema, options + "T")()
            for key, value in fields.items():
                if not hasattr(o.builtinOptions, key):
                    raise AttributeError(key)
                setattr(o.builtinOptions, key, value)
        self.operators.append(o)
        return output

    def activation(self, shape, scale=0.05, zero=3):
        return self.tensor(shape, scale=scale, zero=zero + (128 if self.dtype == np.uint8 else 0))

    def weights(self, shape, channel_axis, per_channel, bias_of, seen_scale):
        """Random weights with a bias; the scale of one tap is such that sums fill the output's range."""
        channels = shape[channel_axis]
        fan_in = np.prod(shape) / channels
        scale = self.rng.uniform(0.5, 1.5, channels if per_channel else 1) * 0.02 / np.sqrt(fan_in)
        zero = 131 if self.dtype == np.uint8 else 0
        info = np.iinfo(self.dtype)
        data = self.rng.integers(info.min + (self.dtype == np.int8), info.max + 1, shape).astype(self.dtype)
        w = self.tensor(shape, scale=scale, zero=zero, data=data, axis=channel_axis)
        bias = self.rng.integers(-2000, 2000, channels).astype(np.int32)
        return w, self.tensor([bias_of], np.int32, scale=seen_scale * scale, data=bias)

    def conv(self, x, shape, out_shape, per_channel=False, stride=1, act="RELU", x_scale=0.05, zero=3):
        w, b = self.weights(shape, 0, per_channel, shape[0], x_scale)
        y = self.activation(out_shape, zero=zero)
        return self.operator(
            "CONV_2D", [x, w, b], y, "Conv2DOptions", padding=0, strideH=stride, strideW=stride, dilationHFactor=1,
            dilationWFactor=1, fusedActivationFunction=getattr(schema.ActivationFunctionType, act),
        )  # fmt: skip

    def depthwise(self, x, shape, out_shape, multiplier=1, per_channel=False, stride=1, act="NONE"):
        w, b = self.weights(shape, 3, per_channel, shape[3], 0.05)
        y = self.activation(out_shape)
        return self.operator(
            "DEPTHWISE_CONV_2D", [x, w, b], y, "DepthwiseConv2DOptions", padding=0, strideH=stride, strideW=stride,
            dilationHFactor=1, dilationWFactor=1, depthMultiplier=multiplier,
            fusedActivationFunction=getattr(schema.ActivationFunctionType, act),
        )  # fmt: skip

    def dense(self, x, shape, per_channel=False):
        w, b = self.weights(shape, 0, per_channel, shape[0], 0.05)
        return self.operator("FULLY_CONNECTED", [x, w, b], self.activation([1, shape[0]]), "FullyConnectedOptions")

    def pool(self, kind, x, out_shape, size, stride, padding=0):
        return self.operator(
            kind, [x], self.activation(out_shape), "Pool2DOptions", padding=padding, strideH=stride, strideW=stride,
            filterHeight=size, filterWidth=size,
        )  # fmt: skip

    def softmax(self, x, shape):
        y = self.tensor(shape, scale=1 / 256, zero=-128 if self.dtype == np.int8 else 0)
        return self.operator("SOFTMAX", [x], y, "SoftmaxOptions", beta=1.0)

    def finish(self, x, y):
        return self.finish_many([x], [y])

    def constant(self, shape, dtype=None, scale=0.01, **settings):
        """A tensor with random values, small ones more often."""
        dtype = np.dtype(dtype or self.dtype)
        data = self.rng.normal(0, 12 if dtype.kind in "iu" else 0.1, shape)
        scale = scale if dtype.kind in "iu" else None
        return self.tensor(shape, dtype, scale, data=(data + (128 if dtype == np.uint8 else 0)).astype(dtype), **settings)

    def end_subgraph(self, inputs, outputs, signature=None):
        """Closes the present subgraph; what follows is of the next."""
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = self.tensors, self.operators
        subgraph.inputs, subgraph.outputs = inputs, outputs
        if signature:
            stated = schema.SignatureDefT()
            stated.signatureKey, stated.subgraphIndex = signature.encode(), len(self.subgraphs)
            stated.inputs = stated.outputs = []
            self.signatures.append(stated)
        self.subgraphs.append(subgraph)
        self.tensors, self.operators = [], []

    def finish_many(self, inputs, outputs, signature=None):
        self.end_subgraph(inputs, outputs, signature)
        model = schema.ModelT()
        model.version = 3
        model.operatorCodes, model.subgraphs, model.buffers = self.codes, self.subgraphs, self.buffers
        if self.signatures:
            model.signatureDefs = self.signatures
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def network(dtype=np.int8, per_channel=False, seed=0):
    """An Inception block with four concatenated branches, padding, a residual sum, pools, a mean and a dense head."""
    b = Builder(dtype, seed)
    x = b.activation([1, 9, 9, 3])
    h = b.depthwise(x, [1, 3, 3, 6], [1, 9, 9, 6], multiplier=2, per_channel=per_channel)
    one = b.conv(h, [4, 1, 1, 6], [1, 9, 9, 4], per_channel)
    three = b.conv(b.conv(h, [5, 1, 1, 6], [1, 9, 9, 5], per_channel, act="RELU6"), [6, 3, 3, 5], [1, 9, 9, 6], per_channel)
    pooled = b.conv(b.pool("MAX_POOL_2D", h, [1, 9, 9, 6], 3, 1), [4, 1, 1, 6], [1, 9, 9, 4], per_channel, act="NONE")
    averaged = b.pool("AVERAGE_POOL_2D", h, [1, 9, 9, 6], 3, 1)
    joined = b.activation([1, 9, 9, 20])
    b.operator("CONCATENATION", [one, three, pooled, averaged], joined, "ConcatenationOptions", axis=3)
    back = b.depthwise(joined, [1, 3, 3, 20], [1, 9, 9, 20], per_channel=per_channel)
    total = b.activation([1, 9, 9, 20], scale=0.07, zero=-5)
    b.operator("ADD", [joined, back], total, "AddOptions", fusedActivationFunction=schema.ActivationFunctionType.NONE)
    pads = b.tensor([4, 2], np.int32, data=np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.int32))
    padded = b.operator("PAD", [total, pads], b.activation([1, 10, 10, 20], scale=0.07, zero=-5), "PadOptions")
    h = b.conv(padded, [8, 3, 3, 20], [1, 5, 5, 8], per_channel, stride=2, act="NONE", x_scale=0.07)
    axes = b.tensor([2], np.int32, data=np.array([1, 2], np.int32))
    h = b.operator("MEAN", [h, axes], b.activation([1, 1, 1, 8]), "ReducerOptions", keepDims=True)
    shape = b.tensor([2], np.int32, data=np.array([1, 8], np.int32))
    h = b.operator("RESHAPE", [h, shape], b.activation([1, 8]), "ReshapeOptions", newShape=np.array([1, 8], np.int32))
    h = b.dense(h, [7, 8])
    return b.finish(x, b.softmax(h, [1, 7]))
