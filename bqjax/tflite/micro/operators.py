"""DECODE operators in a model's records: put before the operators that read encoded weights, and taken out again.

Each consumer has a DECODE of its own directly before it, for all that it reads: so the decoded weights live for one operator, also
in memory that is kept for them alone. The weight's tensor becomes the output; the encoded and the ancillary tensor are new, behind
all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bqjax.tflite.format.names import type_name
from bqjax.tflite.format.records import Record
from bqjax.tflite.micro.encoded import Encoded, Kind, parse_ancillary
from bqjax.tflite.micro.huffman import decode_huffman
from bqjax.tflite.micro.lut import decode_lut
from bqjax.tflite.micro.pruning import decode_pruning
from bqjax.tflite.micro.squeeze import operator_kind

__all__ = ["DECODE", "Decoded", "decode_tensor", "holds_decode", "with_decode", "without_decode"]

DECODE = "TFLM_DECODE"
_CUSTOM = 32
_UINT8 = 3
_MOST_TIMES = 16  # values of all weights, to the bytes of all constants
_DTYPES: dict[str, np.dtype] = {"INT8": np.dtype(np.int8), "INT16": np.dtype(np.int16)}


@dataclass(frozen=True)
class Decoded:
    """A weight as a file has it.

    Attributes:
      subgraph, tensor, name: which tensor it is, by its numbers in the file; files for TFLM seldom have names.
      kind, encoded: how it is stored.
      codes: its values.
      reader: the operator that reads it.
    """

    subgraph: int
    tensor: int
    name: str
    kind: Kind
    encoded: Encoded
    codes: np.ndarray
    reader: str


def holds_decode(model: Record) -> bool:
    """Whether a model has DECODE operators."""
    return any(operator_kind(model, o) == DECODE for s in model["subgraphs"] for o in s["operators"])


def with_decode(model: Record, encoded: Mapping[int, Encoded]) -> Record:
    """A model whose weights are encoded.

    Args:
      model: records; its first subgraph's operators read the weights.
      encoded: by the weight's tensor in the first subgraph; each has a reader.
    """
    if not encoded:
        return model
    code = {"deprecated_code": _CUSTOM, "code": _CUSTOM, "custom_code": DECODE.encode()}
    subgraph = model["subgraphs"][0]
    tensors = [dict(tensor) for tensor in subgraph["tensors"]]
    sources: dict[int, tuple[int, int]] = {}
    operators: list[Record] = []
    for operator in subgraph["operators"]:
        inputs, pairs, outputs = list(operator["inputs"]), list[int](), list[int]()
        for i, index in enumerate(inputs):
            if index not in encoded:
                continue
            if index in sources:  # a further reader has an output of its own
                tensors.append(dict(tensors[index]))
                inputs[i] = len(tensors) - 1
            else:
                parts = encoded[index].data, encoded[index].ancillary
                tensors += [{"shape": (len(part),), "type": _UINT8, "data": part} for part in parts]
                sources[index] = len(tensors) - 2, len(tensors) - 1
                tensors[index]["data"] = None
            pairs += sources[index]
            outputs.append(inputs[i])
        if pairs:
            operators.append({"code": len(model["codes"]), "inputs": tuple(pairs), "outputs": tuple(outputs)})
        operators.append({**operator, "inputs": tuple(inputs)})
    first = {**subgraph, "tensors": tensors, "operators": operators}
    return {**model, "codes": [*model["codes"], code], "subgraphs": [first, *model["subgraphs"][1:]]}


def without_decode(model: Record) -> tuple[Record, list[Decoded]]:
    """The plain model, and what was decoded.

    Raises:
      ValueError: a DECODE operator that no kernel takes, or tensors that do not fit each other.
    """
    found: list[Decoded] = []
    subgraphs = [_plain(model, number, found) for number in range(len(model["subgraphs"]))]
    codes = [code for code in model["codes"] if code.get("custom_code") != DECODE.encode()]
    numbers, kept = {}, 0
    for i, code in enumerate(model["codes"]):
        numbers[i] = kept
        kept += code.get("custom_code") != DECODE.encode()
    for subgraph in subgraphs:
        subgraph["operators"] = [{**o, "code": numbers[o["code"]]} for o in subgraph["operators"]]
    signatures = [_renumbered(s, subgraphs) for s in model.get("signatures", ())]
    for subgraph in subgraphs:
        del subgraph["numbers"]
    plain = {**model, "codes": codes, "subgraphs": subgraphs}
    return ({**plain, "signatures": signatures} if signatures else plain), found


def _plain(model: Record, number: int, found: list[Decoded]) -> Record:
    """A subgraph without DECODE; under "numbers" the new number of each tensor, -1 of those that are gone."""
    subgraph = model["subgraphs"][number]
    tensors = [dict(tensor) for tensor in subgraph["tensors"]]
    same: dict[int, int] = {}  # outputs that are copies of another one
    first: dict[tuple[int, int], int] = {}
    # A bit is the least that a value takes: what decodes to far more has the same bytes decoded again and again.
    allowed = _MOST_TIMES * sum(len(tensor.get("data") or b"") for tensor in tensors)
    operators, parts = list[Record](), set[int]()
    for place, operator in enumerate(subgraph["operators"]):
        if operator_kind(model, operator) != DECODE:
            operators.append(operator)
            continue
        inputs, outputs = operator["inputs"], operator["outputs"]
        if len(inputs) != 2 * len(outputs) or min((*inputs, *outputs), default=-1) < 0:
            raise ValueError(f"a DECODE operator of {len(inputs)} inputs and {len(outputs)} outputs: the file is damaged")
        for pair, output in zip(zip(inputs[::2], inputs[1::2], strict=True), outputs, strict=True):
            bare = {k: v for k, v in tensors[output].items() if k not in ("data", "name")}
            known = first.setdefault(pair, output)
            if known != output and bare == {k: v for k, v in tensors[known].items() if k not in ("data", "name")}:
                same[output] = known
                continue
            reader = next((operator_kind(model, o) for o in subgraph["operators"][place:] if output in o["inputs"]), "no operator")
            allowed -= math.prod(tensors[output].get("shape", ()))
            if allowed < 0:
                raise ValueError("DECODE operators make far more values than the file has bits: it is damaged")
            one = _decoded(tensors, pair, output, (number, reader))
            tensors[output]["data"] = one.codes.astype(one.codes.dtype.newbyteorder("<")).tobytes()
            found.append(one)
            parts |= set(pair)
    read = {i for o in operators for i in (*o["inputs"], *o["outputs"])} | {*subgraph["inputs"], *subgraph["outputs"]}
    gone = (parts - read) | set(same)
    numbers, kept = {-1: -1}, 0
    for i in range(len(tensors)):
        numbers[i] = -1 if i in gone else kept
        kept += i not in gone
    numbers |= {i: numbers[target] for i, target in same.items()}

    def renumbered(indices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(numbers[i] for i in indices)

    return {
        **subgraph,
        "tensors": [tensor for i, tensor in enumerate(tensors) if i not in gone],
        "inputs": renumbered(subgraph["inputs"]),
        "outputs": renumbered(subgraph["outputs"]),
        "operators": [{**o, "inputs": renumbered(o["inputs"]), "outputs": renumbered(o["outputs"])} for o in operators],
        "numbers": numbers,
    }


def _renumbered(signature: Record, subgraphs: list[Record]) -> Record:
    which = signature.get("subgraph", 0)
    if which >= len(subgraphs):
        raise ValueError(f"a signature names subgraph {which} of {len(subgraphs)}: the file is damaged")
    numbers = subgraphs[which]["numbers"]
    maps = {
        side: [{**entry, "tensor": numbers.get(entry.get("tensor", 0), 0)} for entry in signature.get(side, ())]
        for side in ("inputs", "outputs")
    }
    return {**signature, **maps}


def _decoded(tensors: list[Record], pair: tuple[int, int], output: int, about: tuple[int, str]) -> Decoded:
    data, extra = (tensors[i].get("data") or b"" for i in pair)
    tensor = tensors[output]
    kind, first, second, payload = parse_ancillary(extra)
    codes = decode_tensor(tensor, data, (kind, first, second, payload))
    values, bits = len(np.unique(codes)), 8 * len(data) / max(1, codes.size)
    name = tensor.get("name", b"").decode(errors="replace")
    return Decoded(about[0], output, name, kind, Encoded(kind, data, extra, values, bits), codes, about[1])


def decode_tensor(tensor: Record, data: bytes, header: tuple[Kind, int, int, bytes]) -> np.ndarray:
    """The values of an output of DECODE, from its record, the encoded bytes, and :func:`~.encoded.parse_ancillary`.

    Raises:
      ValueError: they do not fit each other.
    """
    dtype = _DTYPES.get(kind_of := type_name(tensor.get("type", 0)))
    shape = tensor.get("shape", ())
    if dtype is None:
        raise ValueError(f"a DECODE operator makes a tensor of type {kind_of}: INT8 and INT16 are known")
    if min(shape, default=0) < 0 or math.prod(shape) > 8 * len(data):
        raise ValueError(f"a tensor {shape} of {len(data):,} encoded bytes: fewer than a bit a value; the file is damaged")
    kind, first, second, payload = header
    quantization = tensor.get("quantization", {})
    channels, axis = len(quantization.get("scale", ())), quantization.get("axis", 0)
    if kind == "lut":
        return decode_lut(data, (first, second, payload), shape, dtype, channels, axis)
    if kind == "huffman":
        return decode_huffman(data, first, payload, math.prod(shape), dtype).reshape(shape)
    return decode_pruning(data, payload, shape, dtype, zero_points(tensor, dtype))


def zero_points(tensor: Record, dtype: np.dtype) -> np.ndarray:
    """Zero points of a tensor, of a shape that broadcasts to it.

    Raises:
      ValueError: they do not fit its shape.
    """
    shape, quantization = tensor.get("shape", ()), tensor.get("quantization", {})
    points, axis = np.array(quantization.get("zero_point", (0,)) or (0,)), quantization.get("axis", 0)
    if len(points) == 1:
        return points.astype(dtype).reshape([1] * len(shape))
    if not 0 <= axis < len(shape) or shape[axis] != len(points):
        raise ValueError(f"{len(points)} zero points along dimension {axis} of a tensor {shape}: the file is damaged")
    return points.astype(dtype).reshape([-1 if i == axis else 1 for i in range(len(shape))])
