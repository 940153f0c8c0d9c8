"""A JAX twin of a quantized ``.tflite`` graph: the same integers, jittable, with the weights as arguments.

    graph = parse(path.read_bytes())
    twin = build(graph)
    (scores,) = twin.apply(params(graph), images)

:meth:`Twin.apply` computes what the interpreter computes. :meth:`Twin.apply_real` is the same network in real numbers, for
gradients. Both are plain traceable operations, so that a sweep can slice them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.tflite.format.graph import Graph, Operator, Tensor
from bqjax.tflite.format.weights import WEIGHTED, weight_names
from bqjax.tflite.twin.operators import OPERATORS, Node, int8_codes, shift_of
from bqjax.tflite.twin.real import REAL_OPERATORS, dequantized

__all__ = ["Kernels", "Params", "Twin", "build", "unsupported"]

Params = Mapping[str, Mapping[str, Any]]
Kernels = Literal["builtin", "reference"]


@dataclass(frozen=True)
class Twin:
    """A network of a ``.tflite`` graph; see :func:`build`.

    Attributes:
      graph: as parsed.
      kernels: whose rounding is followed.
    """

    graph: Graph = field(repr=False)
    kernels: Kernels
    _names: Mapping[int, str] = field(repr=False)
    # Weight -> the first operator that uses it, whose bias is the entry's.
    _owners: Mapping[int, int] = field(repr=False)

    def apply(self, params: Params, x: Any) -> list[jax.Array]:
        """The outputs' codes.

        Args:
          params: ``{name: {"codes", "bias", ...}}`` as :func:`~bqjax.tflite.format.weights.params` gives it. Codes and
            biases are cast to integers and must lie in the range of the file's types; scales and zero points are the
            graph's, whatever the entries say.
          x: ``[n, ...]`` of the input's dtype.

        Returns:
          One ``[n, ...]`` of its own dtype for each output of the graph.

        Raises:
          ValueError: a weight is missing, or a shape does not fit.
        """
        values = self._run(params, x)
        return [self._external(values[i], self.graph.tensors[i]) for i in self.graph.outputs]

    def apply_logits(self, params: Params, x: Any) -> jax.Array:
        """Codes ``[n, ...]`` of the first output, or of what its final softmax gets; in that tensor's dtype."""
        index = self.logits_index
        return self._external(self._run(params, x)[index], self.graph.tensors[index])

    def apply_real(self, params: Params, x: Any) -> jax.Array:
        """The same network in real numbers, differentiable in codes and biases.

        Weights are ``(codes - zero_point) * scale`` and biases ``bias * input_scale * scale``, neither rounded. Activations
        are clamped to what their codes can represent, and not rounded.

        Args:
          params: as for :meth:`apply`; codes and biases as float32, integers or not.
          x: ``[n, ...]`` codes of the input's dtype.

        Returns:
          Real logits, float32 ``[n, ...]``: the first output, or what its final softmax gets.
        """
        return self._run(params, x, real=True)[self.logits_index]

    @property
    def layers(self) -> dict[str, Operator]:
        """The operator of each weight, the first where several use it, by the weight's name."""
        return {self._names[index]: self.graph.operators[position] for index, position in self._owners.items()}

    def layer_inputs(self, params: Params, x: Any) -> dict[str, jax.Array]:
        """What each weight of :attr:`layers` is multiplied with: int32 codes ``[n, ...]`` less their zero point."""
        values, found = self._run(params, x), {}
        for name, operator in self.layers.items():
            tensor = self.graph.tensors[operator.inputs[0]]
            if tensor.zero_point is None:
                raise ValueError(f"the input of {name!r} is not quantized")
            found[name] = values[operator.inputs[0]].astype(jnp.int32) - (int(tensor.zero_point[0]) - shift_of(tensor.dtype))
        return found

    @property
    def logits_index(self) -> int:
        """The tensor that the first output's softmax gets, or the first output where no softmax ends the network."""
        makers = {o: operator for operator in self.graph.operators for o in operator.outputs}
        index = self.graph.outputs[0]
        while (operator := makers.get(index)) is not None and operator.kind in ("RESHAPE", "QUANTIZE", "DEQUANTIZE"):
            index = operator.inputs[0]
        return operator.inputs[0] if operator is not None and operator.kind == "SOFTMAX" else self.graph.outputs[0]

    def _external(self, x: jax.Array, tensor: Tensor) -> jax.Array:
        if tensor.dtype == np.uint8:
            return (x.astype(jnp.int32) + 128).astype(jnp.uint8)
        return x

    def _run(self, params: Params, x: Any, real: bool = False) -> dict[int, jax.Array]:
        tensors = self.graph.tensors
        (source,) = self.graph.inputs
        x = jnp.asarray(x)
        if x.shape[1:] != tensors[source].shape[1:] or x.dtype != tensors[source].dtype:
            raise ValueError(
                f"x must be {tensors[source].dtype} [n, {', '.join(map(str, tensors[source].shape[1:]))}], got {x.dtype} {x.shape}"
            )
        missing = [name for name in self._names.values() if name not in params]
        if missing:
            raise ValueError(f"params lack the weights {', '.join(missing)}")
        # A code is read as the real number it stands for, or moved into int8.
        start = dequantized(x, tensors[source]) if real else self._internal(x, tensors[source])
        values: dict[int, jax.Array] = {source: start}
        for position, operator in enumerate(self.graph.operators):
            node = _node(self.graph, operator, self.kernels == "reference")
            if real and operator.kind == "SOFTMAX":
                values[operator.outputs[0]] = jax.nn.softmax(values[operator.inputs[0]] * operator.options["beta"], axis=-1)
                continue
            arguments = self._arguments(position, operator, params, values, real)
            table = REAL_OPERATORS if real else OPERATORS
            values[operator.outputs[0]] = table[operator.kind](node, *arguments)
        return values

    def _internal(self, x: Any, tensor: Tensor) -> jax.Array:
        return int8_codes(x, tensor.dtype) if tensor.dtype in (np.int8, np.uint8) else jnp.asarray(x)

    def _arguments(
        self, position: int, operator: Operator, params: Params, values: Mapping[int, jax.Array], real: bool
    ) -> list[jax.Array]:
        """The operator's inputs in the form that its function takes; constants that the node holds are left out."""
        tensors, arguments = self.graph.tensors, []
        owned = operator.kind in WEIGHTED and self._owners.get(operator.inputs[1]) == position
        for i, index in enumerate(operator.inputs):
            if index < 0 or (i > 0 and operator.kind in ("RESHAPE", "PAD", "PADV2", "MEAN")):
                continue
            tensor = tensors[index]
            if index in values:
                arguments.append(values[index])
            elif operator.kind in WEIGHTED and i == 1:
                codes = params[self._names[index]]["codes"]
                if np.shape(codes) != tensor.shape:
                    raise ValueError(f"codes of {self._names[index]!r} must be {tensor.shape}, got {np.shape(codes)}")
                arguments.append(dequantized(codes, tensor) if real else self._internal(codes, tensor))
            else:
                entry = params[self._names[operator.inputs[1]]] if owned and i == 2 else {}
                constant = entry.get("bias", tensor.data)
                if constant is None:
                    raise ValueError(f"tensor {tensor.name!r} is neither computed nor constant")
                if operator.kind in WEIGHTED and i == 2:
                    arguments.append(_bias(constant, tensors, operator) if real else jnp.asarray(constant).astype(jnp.int32))
                else:
                    arguments.append(dequantized(constant, tensor) if real else self._internal(constant, tensor))
        return arguments


def _bias(bias: Any, tensors: tuple[Tensor, ...], operator: Operator) -> jax.Array:
    x, w = tensors[operator.inputs[0]].scale, tensors[operator.inputs[1]].scale
    if x is None or w is None:
        raise ValueError(f"{operator.kind} must have quantized inputs")
    return jnp.asarray(bias).astype(jnp.float32) * (x * w)


def _node(graph: Graph, operator: Operator, reference: bool) -> Node:
    inputs = tuple(graph.tensors[i] if i >= 0 else None for i in operator.inputs)
    return Node(operator, inputs, graph.tensors[operator.outputs[0]], reference)


def unsupported(graph: Graph) -> str | None:
    """The first operator that a twin does not know, named with its index and the reason; None where it knows them all."""
    for position, operator in enumerate(graph.operators):
        if operator.kind not in OPERATORS or len(operator.outputs) != 1:
            return f"operator {position}, {operator.kind}, is not supported by the JAX twin"
        if operator.kind in WEIGHTED and (len(operator.inputs) < 2 or operator.inputs[1] < 0):
            return f"operator {position}, {operator.kind}, has no weights"
        if operator.kind in WEIGHTED:
            source, weight = graph.tensors[operator.inputs[0]], graph.tensors[operator.inputs[1]]
            if weight.unread:
                return f"operator {position}, {operator.kind}, has weights {weight.unread}, which the JAX twin does not support"
            if weight.data is None:
                return f"operator {position}, {operator.kind}, computes its weights, which the JAX twin does not support"
            if weight.dtype not in (np.int8, np.uint8) or weight.scale is None or source.scale is None:
                return f"operator {position}, {operator.kind}, is not quantized to 8 bits, which the JAX twin does not support"
    return None


def build(graph: Graph, kernels: Kernels = "builtin") -> Twin:
    """The twin of a graph.

    Args:
      graph: from :func:`~bqjax.tflite.format.graph.parse`, with a batch of 1; the twin takes any batch.
      kernels: ``"builtin"`` follows the interpreter's optimised kernels without delegates
        (``OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES``), ``"reference"`` follows ``BUILTIN_REF``; they round halves
        differently in matrix products.

    Raises:
      ValueError: an operator is not supported (the message names it, its index and those that are), the graph has
        several inputs, or ``kernels`` is unknown.
    """
    if kernels not in ("builtin", "reference"):
        raise ValueError(f'kernels must be "builtin" or "reference", got {kernels!r}')
    if missing := unsupported(graph):
        raise ValueError(
            f"{missing}: bqjax compress --data lets LiteRT score such a model, --bins or --lossless without --data need no score. "
            f"Supported are {', '.join(OPERATORS)}"
        )
    if len(graph.inputs) != 1:
        raise ValueError(f"a twin has one input, the graph has {len(graph.inputs)}")
    owners: dict[int, int] = {}
    for position, operator in enumerate(graph.operators):
        if operator.kind in WEIGHTED:
            owners.setdefault(operator.inputs[1], position)
    return Twin(graph, kernels, weight_names(graph), owners)
