"""An encoding for each weight of a model: by the bytes that it takes in the file, within what decoding may cost.

Which weights can be encoded, and why others stay plain; then the smallest of look-up table, Huffman code, bitmap and plain bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bqjax.tflite.format.constants import LARGE, WEIGHTED
from bqjax.tflite.format.names import type_name
from bqjax.tflite.format.records import Record
from bqjax.tflite.micro.cost import decode_ns
from bqjax.tflite.micro.encoded import Encoded
from bqjax.tflite.micro.huffman import encode_huffman
from bqjax.tflite.micro.lut import MAX_VALUES, encode_lut
from bqjax.tflite.micro.operators import zero_points
from bqjax.tflite.micro.pruning import encode_pruning
from bqjax.tflite.micro.squeeze import operator_kind

__all__ = ["ENTRY_BYTES", "Limits", "candidates", "choose", "decodable", "plain_bytes", "refuse_uint8"]

ENTRY_BYTES = 112
"""About what an encoded weight takes beside its data: two tensors, their buffers, and the operator."""
_NEARLY = 96  # bytes by which a file can be larger than its parts tell
_FAST_ROOT = 8  # bits of a first table with which a codeword is found at once, nearly always


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What decoding may cost.

    Attributes:
      arena: bytes that the decoded weights of an operator may take: larger ones stay plain. None: no limit.
      decode_ms: milliseconds to decode all weights once, as :func:`bqjax.tflite.micro.cost.decode_ns` estimates. None: no limit.
    """

    arena: int | None = None
    decode_ms: float | None = None

    def __post_init__(self) -> None:
        if self.arena is not None and self.arena < 0:
            raise ValueError(f"decoded weights cannot take {self.arena} bytes of the arena: give 0 or more")
        if self.decode_ms is not None and not self.decode_ms >= 0:
            raise ValueError(f"weights cannot be decoded in {self.decode_ms:g} ms: give 0 or more")


class Weight(NamedTuple):
    """A weight that can be encoded: its values, and its zero points of a shape that broadcasts to them."""

    codes: np.ndarray
    absent: np.ndarray
    axis: int | None


class _Option(NamedTuple):
    """What a weight takes in one encoding, None of which is plain."""

    n_bytes: int
    ns: float
    encoded: Encoded | None


def plain_bytes(codes: np.ndarray) -> int:
    """Of a constant that is stored as it is, aligned, with its length."""
    return -(-codes.nbytes // 16) * 16 + 4


def decodable(model: Record) -> tuple[dict[int, Weight], dict[str, tuple[str, int]]]:
    """Weights of the first subgraph that DECODE can make, by tensor; why other large constants stay plain, and bytes, by name."""
    found: dict[int, Weight] = {}
    left: dict[str, tuple[str, int]] = {}
    for number, subgraph in enumerate(model["subgraphs"]):
        uses: dict[int, list[tuple[str, int]]] = {}
        for operator in subgraph["operators"]:
            for operand, index in enumerate(operator["inputs"]):
                uses.setdefault(index, []).append((operator_kind(model, operator), operand))
        outside = {*subgraph["inputs"], *subgraph["outputs"]}
        for index, tensor in enumerate(subgraph["tensors"]):
            if tensor.get("data") is None:
                continue
            reason = _reason(tensor, uses.get(index, []), number, index in outside)
            if not reason:
                found[index] = _weight(tensor)
            elif len(tensor["data"]) > LARGE:
                left[_name(tensor, number, index)] = reason, len(tensor["data"])
    return found, left


def refuse_uint8(model: Record) -> None:
    """Raises ``ValueError`` where TFLM has no kernels for a model: one with layers of unsigned weights."""
    for subgraph in model["subgraphs"]:
        for operator in subgraph["operators"]:
            kind = operator_kind(model, operator)
            index = operator["inputs"][1] if len(operator["inputs"]) > 1 else -1
            if kind in WEIGHTED and index >= 0 and type_name(subgraph["tensors"][index].get("type", 0)) == "UINT8":
                raise ValueError(
                    f"a uint8 weight of {kind}: TFLM has no kernels for uint8 networks; convert the model with int8 weights, or "
                    "leave --target tflm out for the .bq.safetensors container"
                )


def _name(tensor: Record, subgraph: int, index: int) -> str:
    name: bytes = tensor.get("name", b"")
    return name.decode(errors="replace") or f"tensor {index}" + (f" of subgraph {subgraph}" if subgraph else "")


def _reason(tensor: Record, uses: list[tuple[str, int]], subgraph: int, outside: bool) -> str:
    """Why a constant stays plain; empty where it need not."""
    kind = type_name(tensor.get("type", 0))
    weight = next((of for of, operand in uses if of in WEIGHTED and operand == 1), None)
    if weight is None:
        return f"{kind}, input {uses[0][1]} of {uses[0][0]}" if uses else f"{kind}, used by no operator"
    if kind != "INT8":
        return f"{kind} weight of {weight}"
    if outside:
        return f"weight of {weight} that is an input or output of the graph"
    if subgraph:
        return f"weight of {weight} in subgraph {subgraph}"
    other = next(((of, operand) for of, operand in uses if of not in WEIGHTED or operand != 1), None)
    if other is not None:
        return f"weight of {weight} that is input {other[1]} of {other[0]} too"
    quantization, shape = tensor.get("quantization", {}), tensor.get("shape", ())
    channels, axis = len(quantization.get("scale", ())), quantization.get("axis", 0)
    if not channels:
        return f"weight of {weight} without a scale"
    if channels > 1 and (axis not in (0, len(shape) - 1) or shape[axis] != channels):
        return f"weight of {weight} with {channels} scales along dimension {axis}: kernels decode the first and the last"
    return ""


def _weight(tensor: Record) -> Weight:
    codes = np.frombuffer(tensor["data"], np.int8).reshape(tensor["shape"])
    quantization = tensor["quantization"]
    many = len(quantization["scale"]) > 1
    return Weight(codes, zero_points(tensor, codes.dtype), quantization.get("axis", 0) if many else None)


def candidates(weight: Weight, kinds: tuple[str, ...] = ("lut", "huffman", "pruning")) -> list[Encoded]:
    """All encodings that a weight can have."""
    codes, axis = weight.codes, weight.axis
    found: list[Encoded] = []
    values = len(np.unique(codes))
    if "lut" in kinds and values <= MAX_VALUES:
        found.append(encode_lut(codes))
    if "lut" in kinds and axis is not None and values > 2:
        rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
        if max(len(np.unique(row)) for row in rows) <= min(MAX_VALUES, values - 1):
            found.append(encode_lut(codes, axis))
    if "huffman" in kinds:
        found += [encode_huffman(codes), encode_huffman(codes, _FAST_ROOT)]
    if "pruning" in kinds:
        found.append(encode_pruning(codes, weight.absent))
    return found


def choose(
    weights: Mapping[int, Weight], limits: Limits | None = None, kinds: tuple[str, ...] = ("lut", "huffman", "pruning")
) -> dict[int, tuple[Encoded | None, ...]]:
    """The encoding of fewest bytes of each weight within the limits, then others that take nearly as few; None is to stay plain.

    Bytes are those of a weight by itself; by a few of them a file can differ, whose small parts lie where alignment leaves gaps.
    Where the time to decode is limited, a byte is worth the same time in all weights, and the others are no slower.
    """
    limits = limits or Limits()
    options: dict[int, list[_Option]] = {}
    for index, weight in weights.items():
        options[index] = [_Option(plain_bytes(weight.codes), 0.0, None)]
        if limits.arena is None or weight.codes.nbytes <= limits.arena:
            found = candidates(weight, kinds)
            options[index] += [_Option(e.n_bytes + ENTRY_BYTES, decode_ns(e, weight.codes.size), e) for e in found]

    def at(price: float) -> dict[int, _Option]:
        return {index: min(found, key=lambda one: (one.n_bytes + price * one.ns, one.ns)) for index, found in options.items()}

    chosen = at(0.0)
    limit = None if limits.decode_ms is None else 1e6 * limits.decode_ms
    if limit is not None and sum(one.ns for one in chosen.values()) > limit:
        low, high = -30.0, 30.0  # powers of two of bytes a nanosecond
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if sum(one.ns for one in at(2**middle).values()) <= limit else (middle, high)
        chosen = at(2**high)
    return {
        index: (
            one.encoded,
            *(
                other.encoded
                for other in sorted(options[index], key=lambda other: other.n_bytes)
                if other is not one and other.n_bytes <= one.n_bytes + _NEARLY and (limit is None or other.ns <= one.ns)
            ),
        )
        for index, one in chosen.items()
    }
