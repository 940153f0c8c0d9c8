"""Whole files as records and back: the same tensors and operators by the schema's own code, and files that LiteRT runs."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import flatbuffers
import kinds
from ai_edge_litert import schema_py_generated as schema
from builder import network

from bqjax.tflite.format import records
from bqjax.tflite.format.records import pack, unpack
from bqjax.tflite.interpret import interpret


def described(content):
    """Everything the schema's code sees, buffers by their values."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)

    def plain(thing):
        if isinstance(thing, np.ndarray):
            return thing.tolist()
        if isinstance(thing, (list, tuple)):
            return [plain(t) for t in thing]
        if hasattr(thing, "__dict__"):
            return {k: plain(v) for k, v in vars(thing).items()}
        return thing

    whole = plain(model)
    for subgraph in whole["subgraphs"]:
        for tensor in subgraph["tensors"]:
            tensor["buffer"] = whole["buffers"][tensor["buffer"]]["data"] or None
    for metadata in whole["metadata"] or ():
        metadata["buffer"] = whole["buffers"][metadata["buffer"]]["data"]
    del whole["buffers"]
    return whole


CONTENTS = {"network": network(np.int8, True), **{kind.__name__: kind() for kind in kinds.KINDS if kind is not kinds.sparse}}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_schema_reads_the_same(name):
    content = CONTENTS[name]
    packed = pack(unpack(content))
    assert described(packed) == described(content)
    assert pack(unpack(packed)) == packed and unpack(packed) == unpack(content)
    assert len(packed) <= len(content)


def test_constants_are_aligned_and_equal_ones_stored_once():
    content = pack(unpack(network(np.int8, True)))
    model = schema.Model.GetRootAs(content)
    starts = {}
    for i in range(model.BuffersLength()):
        table = model.Buffers(i)._tab
        if place := table.Offset(4):
            starts[i] = table.Vector(place)
    assert all(start % 16 == 0 for start in starts.values())
    assert len(set(starts.values())) == len(starts)


def test_litert_runs_what_was_written():
    content = network(np.int8, True)
    x = np.random.default_rng(0).integers(-128, 128, (8, 9, 9, 3)).astype(np.int8)
    np.testing.assert_array_equal(interpret(pack(unpack(content)), x), interpret(content, x))


def test_which_options_have_vectors_is_what_the_schema_says():
    """By the schema's generated code: fields that are offsets, and numbers of 8 bytes."""
    numbers = {name: n for name, n in vars(schema.BuiltinOptions).items() if isinstance(n, int) and n}
    assert max(numbers.values()) == records._LAST_OPTIONS
    vectors, wide = {}, set()
    classes = re.split(r"\nclass (\w+)\(object\):", Path(schema.__file__).read_text())
    sources = dict(zip(classes[1::2], classes[2::2], strict=True))
    for name, number in numbers.items():
        for method in re.split(r"\n    def ", sources[name]):
            offset = re.search(r"self\._tab\.Offset\((\d+)\)", method)
            if offset is None:
                continue
            field = (int(offset[1]) - 4) // 2
            if re.search(r"_tab\.String\(", method):
                vectors.setdefault(number, {})[field] = 1
            elif re.search(r"_tab\.Vector\(", method):
                width = re.search(r"flatbuffers\.number_types\.UOffsetTFlags\.py_type\(j \* (\d+)\)", method)
                if width:
                    vectors.setdefault(number, {})[field] = int(width[1])
            elif re.search(r"[Ii]nt64Flags", method):
                wide.add(number)
            assert not re.search(r"_tab\.(Indirect|Union)\(", method), name
    assert (vectors, wide) == (records._VECTORS, set(records._WIDE))


def test_what_would_be_lost_is_refused():
    with pytest.raises(ValueError, match="field 6 of a table Tensor cannot be written anew: --lossless"):
        unpack(kinds.sparse())
    model = schema.ModelT.InitFromPackedBuf(network(), 0)
    model.subgraphs[0].operators[0].builtinOptions2Type = schema.BuiltinOptions2.StablehloCaseOptions
    model.subgraphs[0].operators[0].builtinOptions2 = schema.StablehloCaseOptionsT()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(ValueError, match="of a table Operator cannot be written anew"):
        unpack(bytes(builder.Output()))
    with pytest.raises(ValueError, match=r"not a \.tflite file"):
        unpack(b"nothing of the kind")


def test_buffers_that_lie_on_top_of_each_other_are_refused():
    """Else a small file of many buffers, each of nearly all its bytes, would fill the memory."""
    content = bytearray(pack(unpack(network(np.int8))))
    model = schema.Model.GetRootAs(content)
    for i in range(1, model.BuffersLength()):
        table = model.Buffers(i)._tab
        start = table.Vector(table.Offset(4))
        struct.pack_into("<I", content, start - 4, len(content) - start)
    with pytest.raises(ValueError, match="lie on top of each other"):
        unpack(bytes(content))
