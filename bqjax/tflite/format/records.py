"""A whole ``.tflite`` flatbuffer as plain records, and records as a flatbuffer: for files whose tensors or operators change.

A record is a dict of the fields that a table has; vectors are tuples, strings and bytes are ``bytes``. Tensors and metadata have
their values themselves, under ``"data"``, in place of a buffer's number. Lists of tensors and operators, what these read and write,
and an operator's code are always there. Options of operators are kept byte for byte. The same
records always make the same file, and ``pack(unpack(pack(r))) == pack(r)``. No generated code is needed.
Field numbers: TFLite's schema.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from bqjax.tflite.format.checks import verify
from bqjax.tflite.format.layout import Layout
from bqjax.tflite.format.tables import Table, root

__all__ = ["Record", "pack", "unpack"]

Record = dict[str, Any]

BUFFER_ALIGN = 16
"""Bytes that constants are aligned to: runtimes read them in place."""

# Field number and kind: a form of `struct` for a number, "*" and a form for a vector of numbers, "text", a table, [a table].
_SPEC: dict[str, dict[str, tuple[int, str | list[str]]]] = {
    "Model": {
        "version": (0, "I"),
        "codes": (1, ["OperatorCode"]),
        "subgraphs": (2, ["SubGraph"]),
        "description": (3, "text"),
        "buffers": (4, ["Buffer"]),
        "metadata_buffer": (5, "*i"),
        "metadata": (6, ["Metadata"]),
        "signatures": (7, ["SignatureDef"]),
    },
    "OperatorCode": {"deprecated_code": (0, "b"), "custom_code": (1, "text"), "version": (2, "i"), "code": (3, "i")},
    "SubGraph": {
        "tensors": (0, ["Tensor"]),
        "inputs": (1, "*i"),
        "outputs": (2, "*i"),
        "operators": (3, ["Operator"]),
        "name": (4, "text"),
    },
    "Buffer": {"data": (0, "*B"), "offset": (1, "Q"), "size": (2, "Q")},
    "Metadata": {"name": (0, "text"), "buffer": (1, "I")},
    "SignatureDef": {
        "inputs": (0, ["TensorMap"]),
        "outputs": (1, ["TensorMap"]),
        "key": (2, "text"),
        "subgraph": (4, "I"),
    },
    "TensorMap": {"name": (0, "text"), "tensor": (1, "I")},
    "Tensor": {
        "shape": (0, "*i"),
        "type": (1, "b"),
        "buffer": (2, "I"),
        "name": (3, "text"),
        "quantization": (4, "Quantization"),
        "is_variable": (5, "B"),
        "shape_signature": (7, "*i"),
        "has_rank": (8, "B"),
    },
    "Quantization": {
        "min": (0, "*f"),
        "max": (1, "*f"),
        "scale": (2, "*f"),
        "zero_point": (3, "*q"),
        "axis": (6, "i"),
    },
    "Operator": {
        "code": (0, "I"),
        "inputs": (1, "*i"),
        "outputs": (2, "*i"),
        "options_type": (3, "B"),
        "options": (4, "options"),
        "custom_options": (5, "*B"),
        "custom_options_format": (6, "b"),
        "mutating": (7, "*B"),
        "intermediates": (8, "*i"),
    },
}
_DEFAULTS = {("OperatorCode", "version"): 1}
# Options by their number in the schema's union: fields that are vectors, with the bytes of an entry. The rest are numbers.
_VECTORS: dict[int, dict[int, int]] = {3: {1: 4, 2: 4}, 8: {5: 1}, 17: {0: 4}, 30: {0: 4}, 111: {0: 1, 1: 1}, 115: {0: 4}}
_WIDE = frozenset({114})  # options with numbers of 8 bytes
_LAST_OPTIONS = 126


def unpack(content: bytes) -> Record:
    """The records of a file.

    Raises:
      ValueError: the content is no ``.tflite`` file, a damaged one, or one with tables that would be lost.
    """
    verify(content)
    try:
        table = root(content)
        buffers, model = _buffers(table), _record("Model", table)
    except (struct.error, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"damaged .tflite file ({type(error).__name__}: {error}): get a whole copy") from error

    def data(index: int) -> bytes | None:
        if index >= max(1, len(buffers)):
            raise ValueError(f"buffer {index} of {len(buffers)} is named: the .tflite file is damaged; get a whole copy")
        return buffers[index] if buffers else None

    for subgraph in model.setdefault("subgraphs", []):
        for tensor in subgraph.setdefault("tensors", []):
            tensor["data"] = data(tensor.pop("buffer", 0))
        for operator in subgraph.setdefault("operators", []):
            operator.setdefault("code", 0)
            if operator["code"] >= len(model.get("codes", ())):
                raise ValueError("an operator names a code that does not exist: the .tflite file is damaged; get a whole copy")
            _check(subgraph, operator.setdefault("inputs", ()), operator.setdefault("outputs", ()))
        _check(subgraph, subgraph.setdefault("inputs", ()), subgraph.setdefault("outputs", ()))
    for metadata in model.get("metadata", ()):
        metadata["data"] = data(metadata.pop("buffer", 0))
    model.pop("metadata_buffer", None)  # numbers of buffers that nothing reads any more
    return model


def _buffers(model: Table) -> list[bytes | None]:
    """The values of all buffers; those that several tables point to are in memory once."""
    tables = list(model.tables(_SPEC["Model"]["buffers"][0]))
    if any(table.number(1, "<Q") > 1 for table in tables):
        raise ValueError(
            "values behind the flatbuffer, as in files above 2 GB, cannot be written anew: --lossless alone keeps them"
        )
    spans = [table.vector(0) for table in tables]
    if sum(count for _, count in set(spans)) > len(model.content):
        raise ValueError("buffers of the .tflite file lie on top of each other: convert the model again, or get a whole copy")
    found = {(start, count): model.content[start : start + count] or None for start, count in set(spans)}
    return [found[span] for span in spans]


def _check(subgraph: Record, *lists: tuple[int, ...]) -> None:
    if any(not -1 <= index < len(subgraph["tensors"]) for indices in lists for index in indices):
        raise ValueError("a tensor is named that does not exist: the .tflite file is damaged; get a whole copy")


def _record(kind: str, table: Table) -> Record:
    names = {number: name for name, (number, _) in _SPEC[kind].items()}
    found: Record = {}
    for number in table.fields():
        if names.get(number) == "buffers":
            continue
        if number not in names:
            if not table.number(number, "<B"):
                continue
            raise ValueError(f"field {number} of a table {kind} cannot be written anew: --lossless alone stores such a file whole")
        found[names[number]] = _value(_SPEC[kind][names[number]][1], number, table, found)
    return found


def _value(what: str | list[str], number: int, table: Table, found: Record) -> Any:
    if isinstance(what, list):
        return [_record(what[0], entry) for entry in table.tables(number)]
    if what == "options":
        return _options(found.get("options_type", 0), table.table(number))
    if what in _SPEC:
        return _record(what, table.table(number) or table)
    if what == "text" or what == "*B":
        start, count = table.vector(number)
        return table.content[start : start + count]
    if what.startswith("*"):
        start, count = table.vector(number)
        return tuple(np.frombuffer(table.content, _dtype(what), count, start).tolist()) if count else ()
    return table.number(number, f"<{what}")


def _dtype(what: str) -> np.dtype:
    return np.dtype("<" + {"i": "i4", "f": "f4", "q": "i8"}[what[1]])


def _options(kind: int, table: Table | None) -> Record:
    """An options table, byte for byte; vectors that it points to are kept beside it."""
    if not 0 < kind <= _LAST_OPTIONS or table is None:
        raise ValueError(f"options of kind {kind} cannot be written anew: --lossless alone stores such a file whole")
    at = table.at - struct.unpack_from("<i", table.content, table.at)[0]
    if at < 0:
        raise struct.error("an offset points before the file")
    length, size = struct.unpack_from("<2H", table.content, at)
    vtable, content = table.content[at : at + length], bytearray(table.content[table.at : table.at + size])
    if len(vtable) < length or len(content) < size or size < 4:
        raise struct.error("options reach beyond the file")
    vectors = []
    for field, width in _VECTORS.get(kind, {}).items():
        start, count = table.vector(field)
        if start:
            if start + count * width > len(table.content):
                raise struct.error("a vector reaches beyond the file")
            place = struct.unpack_from("<H", vtable, 4 + 2 * field)[0]
            content[place : place + 4] = bytes(4)
            vectors.append((place, width, table.content[start : start + count * width]))
    content[:4] = bytes(4)
    head = -table.at % 8 if kind in _WIDE else 0
    return {"kind": kind, "vtable": vtable, "content": bytes(content), "vectors": tuple(vectors), "head": head}


def pack(model: Mapping[str, Any]) -> bytes:
    """The file of records; constants that are equal are stored once, each aligned to 16 bytes."""
    layout = Layout()
    numbers: dict[bytes, int] = {}

    def buffer(record: Record) -> Record:
        data = record.get("data")
        rest = {name: value for name, value in record.items() if name != "data"}
        return {**rest, "buffer": numbers.setdefault(data, len(numbers) + 1) if data else 0}

    subgraphs = [{**s, "tensors": [buffer(t) for t in s.get("tensors", ())]} for s in model.get("subgraphs", ())]
    metadata = {"metadata": [buffer(m) for m in model["metadata"]]} if model.get("metadata") else {}
    buffers = [{}, *({"data": data} for data in numbers)]
    whole = {**model, "subgraphs": subgraphs, **metadata, "buffers": buffers}
    return layout.finish(_packed("Model", whole, layout), b"TFL3")


def _packed(kind: str, record: Mapping[str, Any], layout: Layout) -> int:
    numbers: list[tuple[int, bytes]] = []
    objects: list[tuple[int, int]] = []
    for name, (number, what) in _SPEC[kind].items():
        value = record.get(name)
        if value is None:
            continue
        if isinstance(what, list):
            objects.append((number, layout.references([_packed(what[0], entry, layout) for entry in value])))
        elif what == "options":
            objects.append((number, _packed_options(value, layout)))
        elif what in _SPEC:
            objects.append((number, _packed(what, value, layout)))
        elif what == "text":
            objects.append((number, layout.vector(value, 1, text=True)))
        elif what == "*B":
            objects.append((number, layout.vector(value, 1, BUFFER_ALIGN if kind == "Buffer" else 0)))
        elif what.startswith("*"):
            dtype = _dtype(what)
            objects.append((number, layout.vector(np.array(value, dtype).tobytes(), dtype.itemsize)))
        elif value != _DEFAULTS.get((kind, name), 0):
            numbers.append((number, struct.pack(f"<{what}", value)))
    return layout.table(numbers, objects)


def _packed_options(options: Record, layout: Layout) -> int:
    vectors = [(place, layout.vector(data, width, text=options["kind"] == 111)) for place, width, data in options["vectors"]]
    wide = options["kind"] in _WIDE
    return layout.verbatim(options["vtable"], options["content"], vectors, 8 if wide else 4, options["head"])
