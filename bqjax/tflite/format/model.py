"""A quantized ``.tflite`` file: its weights as a parameter pytree, and the same file with other weights.

Weights are replaced in place. Nothing else of the flatbuffer moves, so that a runtime sees the model that it knew.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bqjax.core.files import atomic_write
from bqjax.tflite.format import weights
from bqjax.tflite.format.constants import Constant, constants, reported
from bqjax.tflite.format.graph import Graph, parse

__all__ = ["Model", "parse_model", "read", "rewritten", "write"]


@dataclass(frozen=True)
class Model:
    """A file and what is in it.

    Attributes:
      content: the file's bytes.
      graph: tensors and operators of its first subgraph.
      params: ``{name: {"codes", "scale", "zero_point", "bias"}}``, see :func:`bqjax.tflite.format.weights.params`; first those of
        ``graph``, then what only later subgraphs have.
      spans: by ``(name, "codes" or "bias")``, the first byte and the number of bytes in ``content``.
      fixed: first bytes of the spans that hold other constants of the file too: these cannot change.
      constants: all that the file holds, weights or not.
    """

    content: bytes
    graph: Graph
    params: dict[str, dict[str, np.ndarray]]
    spans: dict[tuple[str, str], tuple[int, int]]
    fixed: frozenset[int] = frozenset()
    constants: tuple[Constant, ...] = ()

    @property
    def changeable(self) -> dict[str, dict[str, np.ndarray]]:
        """Those of ``params`` whose codes can change: no other constant shares their buffer."""
        return {name: layer for name, layer in self.params.items() if self.spans[name, "codes"][0] not in self.fixed}

    def sharing(self, field: str) -> dict[str, tuple[str, ...]]:
        """Layers whose ``field`` lies in one buffer, which change together: by the first of them, all of them."""
        groups: dict[int, list[str]] = {}
        for (name, what), (start, _) in self.spans.items():
            if what == field:
                groups.setdefault(start, []).append(name)
        return {names[0]: tuple(names) for names in groups.values() if len(names) > 1}

    @property
    def n_weights(self) -> int:
        """Values of all weights, those that cannot be compressed with loss included (:func:`~.constants.reported`)."""
        return sum(c.n_weights for c in reported(self.constants))


def parse_model(content: bytes) -> Model:
    """As :func:`read`, from the bytes of a file."""
    found = constants(content)
    graph = parse(content)
    names = weights.weight_names(graph)
    params = weights.params(graph)
    later = _later_weights(content, found)
    if not params and not later:
        raise ValueError(_nothing(graph, found))
    places = _places(content)
    spans, tensors, roles = {}, set(), set()
    for index, name in names.items():
        if name not in params:
            continue
        user = next(o for o in graph.operators if o.kind in weights.WEIGHTED and len(o.inputs) > 1 and o.inputs[1] == index)
        for field, tensor in (("codes", index), *([("bias", user.inputs[2])] if "bias" in params[name] else [])):
            spans[name, field] = places[graph.tensors[tensor].buffer]
            tensors.add(tensor)
            roles.add((id(user), tensor))
    _add(later, found, places, params, spans)
    # Constants that are no entry of params, and entries that an operator uses in another way than params say.
    others = {i for i, t in enumerate(graph.tensors) if t.data is not None or t.unread} - tensors
    for o in graph.operators:
        weight = o.inputs[1] if o.kind in weights.WEIGHTED and len(o.inputs) > 1 else -1
        entries = [o.inputs[i] for i in (1, 2) if i < len(o.inputs)] if (id(o), weight) in roles else [weight]
        others |= {i for i in o.inputs if o.inputs.count(i) > entries.count(i) and i in tensors}
    fixed = {places[graph.tensors[i].buffer][0] for i in others}
    # Other subgraphs may have the same weights and biases, as those of further signatures do, but not use them for anything else.
    roles_of = {start: {"codes": 1, "bias": 2}[field] for (_, field), (start, _) in spans.items()}
    for c in found:
        other = any(use.subgraph and (use.kind not in weights.WEIGHTED or use.operand != roles_of.get(c.start)) for use in c.uses)
        fixed |= {c.start} if other else set()
    return Model(content, graph, params, spans, frozenset(fixed & set(roles_of)), found)


def _later_weights(content: bytes, found: tuple[Constant, ...]) -> list[tuple[Graph, dict[str, dict[str, np.ndarray]]]]:
    """Subgraphs beside the first that have weights, each with its params."""
    used = {use.subgraph for c in found if not c.left for use in c.uses if use.subgraph and use.kind in weights.WEIGHTED}
    graphs = [parse(content, number) for number in sorted(used)]
    return [(graph, own) for graph in graphs if (own := weights.params(graph))]


def _add(
    later: list[tuple[Graph, dict[str, dict[str, np.ndarray]]]],
    found: tuple[Constant, ...],
    places: list[tuple[int, int]],
    params: dict[str, dict[str, np.ndarray]],
    spans: dict[tuple[str, str], tuple[int, int]],
) -> None:
    """Adds the weights that later subgraphs have and those before have not, by the names that :func:`constants` gives them."""
    names = {c.start: c.name for c in found}
    for graph, own in later:
        for index, name in weights.weight_names(graph).items():
            span = places[graph.tensors[index].buffer]
            taken = {start for start, _ in spans.values()}
            if name not in own or span[0] in taken:
                continue
            entry, unique = own[name], names[span[0]]
            spans[unique, "codes"] = span
            user = next(o for o in graph.operators if o.kind in weights.WEIGHTED and len(o.inputs) > 1 and o.inputs[1] == index)
            if "bias" in entry and (place := places[graph.tensors[user.inputs[2]].buffer])[0] not in taken:
                spans[unique, "bias"] = place
            else:
                entry = {field: value for field, value in entry.items() if field != "bias"}
            params[unique] = entry


def _nothing(graph: Graph, found: tuple[Constant, ...]) -> str:
    """Why a model has nothing to compress with loss."""
    remedy = "--lossless makes any .tflite file smaller, without changing it"
    if any(graph.tensors[i].dtype.kind == "f" for i in weights.weight_names(graph)):
        return (
            "a float model: compression with loss needs convolutions or dense layers that are quantized to 8 bits; quantize it, "
            f"or compress its weights as .safetensors before converting; {remedy}"
        )
    largest = max(found, key=lambda c: c.size, default=None)
    what = f" (its largest constant is {largest.name!r}, {largest.left})" if largest else ""
    missing = "the model has no convolution or dense layer with constant 8-bit weights: there is nothing to compress with loss"
    return f"{missing}{what}; {remedy}"


def _places(content: bytes) -> list[tuple[int, int]]:
    """First byte and number of bytes of each buffer of a file that :func:`parse` accepts."""
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(content)
    places = []
    for i in range(root.BuffersLength()):
        table = root.Buffers(i)._tab
        place = table.Offset(4)
        places.append((int(table.Vector(place)), int(table.VectorLen(place))) if place else (0, 0))
    filled = sorted({span for span in places if span[1]})
    for (start, size), (following, _) in itertools.pairwise(filled):
        if following < start + size:
            raise ValueError(
                f"two buffers of the .tflite file overlap at byte {following}: their values cannot be replaced one by one; "
                "convert the model again"
            )
    return places


def read(path: str | os.PathLike[str]) -> Model:
    """Reads a quantized model.

    Raises:
      ValueError: naming the file, what is wrong with it and the remedy.
      ImportError: ai-edge-litert is not installed.
      OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        return parse_model(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def rewritten(model: Model, params: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The model's bytes with the codes and biases of ``params``.

    Args:
      model: the file.
      params: as ``model.params``; layers and biases that it lacks stay as they are.

    Raises:
      ValueError: an unknown layer; a shape or dtype that is not the file's; scales or zero points that differ, which a file
        with the same arithmetic cannot have; two tensors of one buffer with different values, or another constant in it.
    """
    content = bytearray(model.content)
    written: dict[int, tuple[str, bytes]] = {}
    for name, layer in params.items():
        if name not in model.params:
            raise ValueError(f"the model has no layer {name!r}: it has {', '.join(list(model.params)[:5])}, ...")
        for field, value in layer.items():
            old, new = model.params[name].get(field), np.asarray(value)
            if old is None or old.shape != new.shape or old.dtype != new.dtype:
                there = "none" if old is None else f"{old.dtype} {old.shape}"
                raise ValueError(f"{name}/{field} is {new.dtype} {new.shape}, the file has {there}: give it the file's")
            if (name, field) not in model.spans:
                if not np.array_equal(old, new):
                    raise ValueError(f"{name}/{field} differs from the file's: only codes and biases can be replaced")
                continue
            start, size = model.spans[name, field]
            data = new.astype(new.dtype.newbyteorder("<")).tobytes()
            if start in model.fixed and not np.array_equal(old, new):
                raise ValueError(
                    f"{name}/{field} shares its buffer with another constant of the model: it cannot change; leave it by a rule "
                    f"before the others, Rule({name + '/*'!r}, skip=True)"
                )
            first, other = written.setdefault(start, (f"{name}/{field}", data))
            if other != data:
                raise ValueError(f"{first} and {name}/{field} share one buffer but differ: give both the same values")
            content[start : start + size] = data
    for (name, field), (start, size) in model.spans.items():
        if field not in params.get(name, {}) and content[start : start + size] != model.content[start : start + size]:
            raise ValueError(f"{written[start][0]} and {name}/{field} share one buffer: give both the same values")
    return bytes(content)


def write(model: Model, params: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str], force: bool = False) -> None:
    """Writes :func:`rewritten` to a file, whole or not at all; ``ValueError`` where it exists and ``force`` is False."""
    content = rewritten(model, params)
    with atomic_write(path, force=force) as file:
        file.write(content)
