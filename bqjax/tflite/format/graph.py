"""A ``.tflite`` flatbuffer as plain data: tensors, operators, constants.

Everything that reads the flatbuffer's tables lives here, so that the rest of the package sees NumPy arrays and strings
alone. Nothing in the file is trusted: offsets, sizes and indices are checked against the bytes there are.
"""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bqjax.tflite.format.checks import verify
from bqjax.tflite.interpret import require_litert

__all__ = ["Graph", "Operator", "Tensor", "parse"]

_DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "INT16": np.int16,
    "INT8": np.int8,
    "BOOL": np.bool_,
    "FLOAT64": np.float64,
    "UINT32": np.uint32,
    "UINT16": np.uint16,
    "UINT64": np.uint64,
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the graph.

    Attributes:
      name: as in the file.
      shape: dimensions.
      dtype: NumPy dtype.
      scale: float32 ``[1]`` per tensor or ``[channels]``, None where the tensor is not quantized.
      zero_point: int64 of the shape of ``scale``, or None.
      axis: the dimension that ``scale`` runs along where it has more than one entry.
      data: the constant's values (a read-only view of the file), None for activations and where ``unread`` says why.
      buffer: index of its buffer; 0 means none.
      unread: what keeps it from being a NumPy array (a type of 4 bits, sparse values, values behind the flatbuffer), or empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    axis: int | None
    data: np.ndarray | None
    buffer: int
    unread: str = ""


@dataclass(frozen=True)
class Operator:
    """One operator: ``kind`` is the schema's name (``"CONV_2D"``), tensors are indices (-1: an optional one is absent).

    ``options`` holds the fields of the operator's options table in snake case (``stride_h``,
    ``fused_activation_function``, ...); enumerations as the schema's names (``"SAME"``, ``"RELU6"``).
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """A subgraph of a model, of which an interpreter runs the first; operators in order of execution."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def parse(content: bytes, subgraph: int = 0) -> Graph:
    """Reads a graph of a ``.tflite`` file.

    Raises:
      ValueError: the content is not a flatbuffer of a TFLite model, or not one whose numbers fit its bytes; it has fewer subgraphs.
      ImportError: ai-edge-litert is not installed.
    """
    require_litert()
    from ai_edge_litert import schema_py_generated as schema

    verify(content)
    try:
        return _graph(schema, content, subgraph)
    except ValueError:
        raise
    except (ArithmeticError, AttributeError, IndexError, KeyError, MemoryError, TypeError, struct.error) as error:
        raise ValueError(f"damaged .tflite file ({type(error).__name__}: {error}): get a whole copy") from error


def _quantized_axis(name: str, axis: int, shape: tuple[int, ...], channels: int, repaired: list[str]) -> int:
    if 0 <= axis < len(shape) and shape[axis] == channels:
        return axis
    if len(shape) == 1 and shape[0] == channels:
        repaired.append(f"tensor {name!r}: quantized_dimension {axis} of a vector is read as 0")
        return 0
    raise ValueError(f"tensor {name!r}: quantized_dimension {axis} does not fit {channels} scales and shape {shape}")


def _graph(schema: Any, content: bytes, number: int) -> Graph:
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    codes, types = _names(schema.BuiltinOperator), _names(schema.TensorType)
    paddings, activations = _names(schema.Padding), _names(schema.ActivationFunctionType)
    if not model.subgraphs or number >= len(model.subgraphs):
        raise ValueError(f"the model has no subgraph{f' {number}' if number else ''}: get a whole copy")
    subgraph = model.subgraphs[number]
    tensors, repaired = [], list[str]()
    for t in subgraph.tensors:
        q = t.quantization
        quantized = q is not None and q.scale is not None and len(q.scale)
        name = t.name.decode(errors="replace") if t.name else ""
        if not 0 <= t.buffer < len(model.buffers):
            raise ValueError(f"tensor {name!r} names buffer {t.buffer} of {len(model.buffers)}: the file is damaged")
        kind = types.get(t.type, f"type {t.type}")
        raw, unread = model.buffers[t.buffer].data, ""
        if t.sparsity is not None:
            unread = "sparse"
        elif model.buffers[t.buffer].offset > 1:
            unread = "behind the flatbuffer"
        elif kind not in _DTYPES:
            unread = f"of type {kind}"
        raw = None if unread else raw
        dtype = np.dtype(_DTYPES.get(kind, np.void))
        shape = tuple(int(n) for n in (t.shape if t.shape is not None else ()))
        if raw is not None and (min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw)):
            raise ValueError(f"tensor {name!r}: {dtype} of shape {shape} does not fit {len(raw)} bytes: the file is damaged")
        data = None if raw is None else np.asarray(raw, np.uint8).view(dtype).reshape(shape)
        tensors.append(
            Tensor(
                name=name,
                shape=shape,
                dtype=dtype,
                scale=np.asarray(q.scale, np.float32) if quantized else None,
                zero_point=np.asarray(q.zeroPoint, np.int64) if quantized else None,
                axis=_quantized_axis(name, int(q.quantizedDimension), shape, len(q.scale), repaired)
                if quantized and len(q.scale) > 1
                else None,
                data=data,
                buffer=int(t.buffer),
                unread=unread,
            )
        )
    if repaired:
        others = f", and so of {len(repaired) - 1} others" if len(repaired) > 1 else ""
        warnings.warn(f"{repaired[0]}{others}; LiteRT refuses to run such a file", stacklevel=2)
    operators = []
    for o in subgraph.operators:
        if any(not -1 <= i < len(tensors) for i in (*o.inputs, *o.outputs)):
            raise ValueError("an operator names a tensor that does not exist: the file is damaged")
        code = model.operatorCodes[o.opcodeIndex]
        options = {_snake(key): value for key, value in vars(o.builtinOptions).items()} if o.builtinOptions else {}
        if "padding" in options:
            options["padding"] = paddings[options["padding"]]
        if "fused_activation_function" in options:
            options["fused_activation_function"] = activations[options["fused_activation_function"]]
        kind = codes[max(code.builtinCode, code.deprecatedBuiltinCode)]
        operators.append(Operator(kind, tuple(map(int, o.inputs)), tuple(map(int, o.outputs)), options))
    return Graph(tuple(tensors), tuple(operators), tuple(map(int, subgraph.inputs)), tuple(map(int, subgraph.outputs)))
