"""The weight tensors of a quantized ``.tflite`` graph, as a dict of integer codes with their scales.

A weight tensor is the constant input 1 of a convolution, depthwise convolution or fully connected layer. A real weight is
``(code - zero_point) * scale``, a real bias ``bias * input_scale * scale`` (TFLite's 8-bit quantization specification,
https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from bqjax.tflite.format.constants import WEIGHTED
from bqjax.tflite.format.graph import Graph, Operator

__all__ = ["WEIGHTED", "layers", "params", "weight_names"]


def _uses(graph: Graph) -> dict[int, Operator]:
    """Tensor index of each weight -> the first operator that uses it, in order of operators."""
    uses: dict[int, Operator] = {}
    for operator in graph.operators:
        if operator.kind in WEIGHTED and len(operator.inputs) > 1:
            index = operator.inputs[1]
            if index >= 0 and graph.tensors[index].data is not None:
                uses.setdefault(index, operator)
    return uses


def weight_names(graph: Graph) -> dict[int, str]:
    """Tensor index of each weight -> a name that no other weight has, in order of operators.

    The name is the tensor's own; where several tensors of the graph share it, ``"#index"`` is appended.
    """
    counts = Counter(t.name for t in graph.tensors)
    return {i: name if counts[name := graph.tensors[i].name] == 1 else f"{name}#{i}" for i in _uses(graph)}


def layers(graph: Graph) -> dict[str, Operator]:
    """The operator of each weight, the first where several use it, by the weight's name."""
    names = weight_names(graph)
    return {names[index]: operator for index, operator in _uses(graph).items()}


def params(graph: Graph) -> dict[str, dict[str, np.ndarray]]:
    """Weights and biases by name, in order of operators.

    Returns:
      ``{name: {"codes", "scale", "zero_point", "bias"}}``: ``codes`` int8 or uint8 of the tensor's shape, as in the file;
      ``scale`` float32 and ``zero_point`` int32, both ``[1]`` or ``[channels]``; ``bias`` int32 ``[channels]``, absent
      where the operator has no constant bias of that type (beside float inputs it is float32). A weight that several
      operators use has one entry, with the bias of the first; the biases of the others are constants of the graph. Weights
      that are not quantized to 8 bits have none: :func:`bqjax.tflite.format.constants.constants` says why.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    names = weight_names(graph)
    for index, operator in _uses(graph).items():
        tensor = graph.tensors[index]
        if tensor.data is None or tensor.scale is None or tensor.zero_point is None or tensor.dtype not in (np.int8, np.uint8):
            continue
        entry = {
            "codes": np.array(tensor.data),
            "scale": np.array(tensor.scale, np.float32),
            "zero_point": np.broadcast_to(tensor.zero_point, tensor.scale.shape).astype(np.int32),
        }
        bias = graph.tensors[operator.inputs[2]].data if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None
        if bias is not None and bias.dtype == np.int32:
            entry["bias"] = np.array(bias)
        found[names[index]] = entry
    return found
