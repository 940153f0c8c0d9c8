"""A ``.tflite`` model without what no interpreter computes with: names, ranges, metadata.

Equal tables and vectors are stored once by :func:`bqjax.tflite.format.records.pack`, as scales and zero points that many tensors
share. What a model computes stays the same, in LiteRT as in TFLM. :func:`compacted` goes further, for files that TFLM alone reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bqjax.tflite.format.constants import WEIGHTED
from bqjax.tflite.format.names import operator_name
from bqjax.tflite.format.records import Record

__all__ = ["compacted", "expanded", "operator_kind", "squeezed"]

_NAMES = ("name", "shape_signature", "has_rank")


def operator_kind(model: Record, operator: Record) -> str:
    """An operator's name in the schema; of a custom one, its own."""
    code = model["codes"][operator["code"]]
    number = max(code.get("code", 0), code.get("deprecated_code", 0))
    if number == 32:
        custom: bytes = code.get("custom_code", b"")
        return custom.decode(errors="replace")
    return operator_name(number)


def squeezed(model: Record, *, keep_names: bool = False) -> Record:
    """The model without names of tensors and subgraphs, descriptions, signatures, metadata, ranges, and shapes for resizing.

    Args:
      model: from :func:`bqjax.tflite.format.records.unpack`.
      keep_names: only ranges (``min`` and ``max``) are left out.
    """
    subgraphs = []
    for subgraph in model["subgraphs"]:
        tensors = []
        for tensor in subgraph["tensors"]:
            short = {k: v for k, v in tensor.items() if k != "quantization" and (keep_names or k not in _NAMES)}
            quantization = {k: v for k, v in tensor.get("quantization", {}).items() if k not in ("min", "max")}
            if quantization.get("scale"):
                short["quantization"] = quantization
            tensors.append(short)
        rest = {k: v for k, v in subgraph.items() if keep_names or k != "name"}
        subgraphs.append({**rest, "tensors": tensors})
    left_out = () if keep_names else ("description", "metadata", "signatures")
    return {**{k: v for k, v in model.items() if k not in left_out}, "subgraphs": subgraphs}


def compacted(model: Record) -> Record:
    """What TFLM needs of a squeezed model; :func:`expanded` restores the rest.

    Zero points of many channels are one where they are equal, as TFLM's allocator takes them. Scales of a convolution's bias are
    left out where they are those of its input times those of its weights: no kernel of TFLM reads them.
    """
    return _changed(model, _without_scales, _one_zero_point)


def expanded(model: Record) -> Record:
    """The inverse of :func:`compacted`."""
    return _changed(model, _with_scales, _all_zero_points)


def _changed(model: Record, bias: Any, zero_points: Any) -> Record:
    """The biases' quantization changed by one function, where the other one's file has all zero points."""
    subgraphs = []
    for subgraph in model["subgraphs"]:
        tensors = [dict(tensor) for tensor in subgraph["tensors"]]
        for operator in subgraph["operators"]:
            inputs = operator["inputs"]
            kind = operator_kind(model, operator)
            if kind in WEIGHTED and kind != "FULLY_CONNECTED" and len(inputs) > 2 and min(inputs[:3]) >= 0:
                found = bias(*(tensors[i].get("quantization") for i in inputs[:3]))
                if found is not None:
                    tensors[inputs[2]]["quantization"] = found
        for tensor in tensors:
            if tensor.get("quantization", {}).get("scale"):
                tensor["quantization"] = zero_points(tensor["quantization"])
        subgraphs.append({**subgraph, "tensors": tensors})
    return {**model, "subgraphs": subgraphs}


def _product(source: Record | None, weight: Record | None) -> tuple[float, ...] | None:
    scales = [np.array((q or {}).get("scale", ()), np.float32) for q in (source, weight)]
    return None if scales[0].size != 1 or not scales[1].size else tuple((scales[0] * scales[1]).tolist())


def _without_scales(source: Record | None, weight: Record | None, bias: Record | None) -> Record | None:
    scale = _product(source, weight)
    if not bias or scale is None or bias.get("scale") != scale or bias.get("zero_point") != (0,) * len(scale):
        return None
    return {k: v for k, v in bias.items() if k not in ("scale", "zero_point")}


def _with_scales(source: Record | None, weight: Record | None, bias: Record | None) -> Record | None:
    scale = _product(source, weight)
    if bias is None or scale is None or bias.get("scale"):
        return None
    return {**bias, "scale": scale, "zero_point": (0,) * len(scale)}


def _one_zero_point(quantization: Record) -> Record:
    points = quantization.get("zero_point", ())
    return {**quantization, "zero_point": points[:1]} if len(set(points)) == 1 else quantization


def _all_zero_points(quantization: Record) -> Record:
    points, scale = quantization.get("zero_point", ()), quantization["scale"]
    return {**quantization, "zero_point": points * len(scale)} if len(points) == 1 else quantization
