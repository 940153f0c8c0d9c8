"""Reading and rewriting .tflite files: what is replaced, what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from builder import Builder, network

from bqjax.tflite.format.graph import parse
from bqjax.tflite.format.model import parse_model, read, rewritten, write

W1, B1, W2, B2 = 1, 2, 4, 5  # tensors of `two`


def two(dtype=np.int8, per_channel=False):
    """Two convolutions of one shape; their weights are `t1` and `t4`."""
    b = Builder(dtype)
    x = b.activation([1, 4, 4, 6])
    h = b.conv(x, [6, 1, 1, 6], [1, 4, 4, 6], per_channel)
    return b.finish(x, b.conv(h, [6, 1, 1, 6], [1, 4, 4, 6], per_channel))


def altered(content, change):
    """The file after ``change(model, tensors)`` of its unpacked tables."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    change(model, model.subgraphs[0].tensors)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def shared(content, first, second):
    def change(model, tensors):
        tensors[second].buffer = tensors[first].buffer

    return altered(content, change)


@pytest.mark.parametrize(("dtype", "per_channel"), [(np.int8, True), (np.int8, False), (np.uint8, False)])
def test_only_the_bytes_of_weights_and_biases_change(dtype, per_channel, tmp_path):
    content = network(dtype, per_channel)
    (tmp_path / "a.tflite").write_bytes(content)
    model = read(tmp_path / "a.tflite")
    assert len(model.params) == 8 and rewritten(model, model.params) == rewritten(model, {}) == content
    rng = np.random.default_rng(1)
    info = np.iinfo(dtype)
    new = {
        name: {
            **layer,
            "codes": rng.integers(info.min, info.max + 1, layer["codes"].shape).astype(dtype),
            "bias": rng.integers(-9999, 9999, layer["bias"].shape).astype(np.int32),
        }
        for name, layer in model.params.items()
    }
    write(model, new, tmp_path / "b.tflite")
    back = read(tmp_path / "b.tflite")
    assert back.params.keys() == new.keys() and back.spans == model.spans
    for name, layer in new.items():
        for field, value in layer.items():
            np.testing.assert_array_equal(back.params[name][field], value)
    free = np.zeros(len(content), bool)
    for start, size in model.spans.values():
        free[start : start + size] = True
    before, after = (np.frombuffer(c, np.uint8) for c in (content, back.content))
    assert len(before) == len(after) and (before != after).any() and not (before != after)[~free].any()
    for old, now in zip(model.graph.tensors, back.graph.tensors, strict=True):
        assert (old.name, old.shape, old.dtype, old.axis) == (now.name, now.shape, now.dtype, now.axis)
    with pytest.raises(ValueError, match="exists"):
        write(model, new, tmp_path / "b.tflite")
    write(model, {}, tmp_path / "b.tflite", force=True)
    assert (tmp_path / "b.tflite").read_bytes() == content


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"codes": np.zeros((6, 6), np.int8)}, r"t1/codes is int8 \(6, 6\), the file has int8 \(6, 1, 1, 6\)"),
        ({"codes": np.zeros((6, 1, 1, 6), np.uint8)}, "t1/codes is uint8"),
        ({"codes": np.zeros((6, 1, 1, 6), np.float32)}, "t1/codes is float32"),
        ({"bias": np.zeros(6, np.int64)}, "t1/bias is int64"),
        ({"scale": np.ones(1, np.float32)}, "t1/scale differs"),
        ({"zero_point": np.ones(1, np.int32)}, "t1/zero_point differs"),
        ({"other": np.ones(1, np.int32)}, "the file has none"),
    ],
)
def test_what_the_file_cannot_hold_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        rewritten(parse_model(two()), {"t1": layer})


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="no layer 'head': it has t1, t4"):
        rewritten(parse_model(two()), {"head": {}})


def test_a_layer_without_a_bias_has_none():
    def change(model, tensors):
        for o in model.subgraphs[0].operators:
            o.inputs = o.inputs[:2]

    model = parse_model(altered(two(), change))
    assert all("bias" not in layer for layer in model.params.values())
    with pytest.raises(ValueError, match="the file has none"):
        rewritten(model, {"t1": {"bias": np.zeros(6, np.int32)}})


@pytest.mark.parametrize(("field", "first", "second"), [("codes", W1, W2), ("bias", B1, B2)])
def test_layers_of_one_buffer_change_together(field, first, second):
    model = parse_model(shared(two(), first, second))
    assert model.spans["t1", field] == model.spans["t4", field]
    old = model.params["t1"][field]
    new = old[::-1].copy()
    with pytest.raises(ValueError, match=rf"t1/{field} and t4/{field} share one buffer"):
        rewritten(model, {"t1": {field: new}})
    with pytest.raises(ValueError, match="share one buffer but differ"):
        rewritten(model, {"t1": {field: new}, "t4": {field: old}})
    back = parse_model(rewritten(model, {"t1": {field: new}, "t4": {field: new}}))
    np.testing.assert_array_equal(back.params["t4"][field], new)
    assert rewritten(model, {"t1": {field: old}}) == model.content


def test_a_constant_of_another_operator_stays():
    def change(model, tensors):
        tensors[0].buffer = tensors[W1].buffer  # the input becomes a constant in the weight's buffer
        tensors[0].shape = [1, 6, 1, 6]

    model = parse_model(altered(two(), change))
    with pytest.raises(ValueError, match="shares its buffer with another constant"):
        rewritten(model, {"t1": {"codes": model.params["t1"]["codes"][::-1]}})
    assert rewritten(model, model.params) == model.content


def test_a_weight_or_bias_that_an_operator_uses_in_another_way_stays():
    def change(model, tensors):
        model.subgraphs[0].operators[1].inputs = [W1, W1, B1]  # its weight, but a bias and an input of its own

    model = parse_model(altered(two(), change))
    assert list(model.params) == ["t1"]
    for field in ("codes", "bias"):
        with pytest.raises(ValueError, match="shares its buffer with another constant"):
            rewritten(model, {"t1": {field: model.params["t1"][field][::-1]}})


def test_a_weight_of_two_layers_changes():
    def change(model, tensors):
        model.subgraphs[0].operators[1].inputs = [3, W1, B2]

    model = parse_model(altered(two(), change))
    assert list(model.params) == ["t1"] and not model.fixed
    new = {name: model.params["t1"][name][::-1] for name in ("codes", "bias")}
    back = parse_model(rewritten(model, {"t1": new}))
    for field, value in new.items():
        np.testing.assert_array_equal(back.params["t1"][field], value)


def test_buffers_that_overlap_in_part_are_refused():
    model = parse_model(two())
    start, _ = model.spans["t1", "codes"]
    bias, size = model.spans["t1", "bias"]
    content = bytearray(model.content)
    content[start : start + 4] = size.to_bytes(4, "little")  # the bias begins within the weight
    (place,) = (p for p in range(0, bias - 4, 4) if p + int.from_bytes(content[p : p + 4], "little") == bias - 4)
    content[place : place + 4] = (start - place).to_bytes(4, "little")
    with pytest.raises(ValueError, match=r"buffers of the \.tflite file overlap"):
        parse_model(bytes(content))


def change_float(model, tensors):
    for i in (W1, W2):
        tensors[i].type = schema.TensorType.FLOAT32
        tensors[i].quantization = None
        model.buffers[tensors[i].buffer].data = np.zeros(4 * 36, np.uint8)


def change_4bit(model, tensors):
    tensors[W1].type = schema.TensorType.INT4
    model.buffers[tensors[W1].buffer].data = np.zeros(18, np.uint8)


def change_sparse(model, tensors):
    tensors[W1].sparsity = schema.SparsityParametersT()


def change_external(model, tensors):
    buffer = model.buffers[tensors[W1].buffer]
    buffer.data, buffer.offset, buffer.size = None, 256, 36


def change_subgraphs(model, tensors):
    model.subgraphs.append(model.subgraphs[0])


def change_axis(model, tensors):
    tensors[W1].quantization.quantizedDimension = 7


def change_unquantized(model, tensors):
    tensors[W1].quantization = None


def change_shape(model, tensors):
    tensors[W1].shape = [6, 1, 1, 7]


def change_buffer(model, tensors):
    tensors[W1].buffer = 99


def change_input(model, tensors):
    model.subgraphs[0].operators[0].inputs = [0, 55, 2]


def change_none(model, tensors):
    model.subgraphs[0].operators = []


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (change_4bit, "INT4 weight of CONV_2D"),
        (change_sparse, "sparse INT8 weight of CONV_2D"),
        (change_external, "INT8 weight of CONV_2D behind the flatbuffer, as in files above 2 GB"),
        (change_unquantized, "INT8 weight of CONV_2D without a scale of its own"),
    ],
)
def test_a_layer_of_another_kind_is_left_and_the_other_is_read(change, left):
    model = parse_model(altered(two(per_channel=True), change))
    assert list(model.params) == list(model.changeable) == ["t4"]
    assert {c.name: c.left for c in model.constants if c.weight} == {"t1": left, "t4": ""}
    new = {"t4": {"codes": model.params["t4"]["codes"][::-1]}}
    back = parse_model(rewritten(model, new))
    np.testing.assert_array_equal(back.params["t4"]["codes"], new["t4"]["codes"])


def test_a_second_subgraph_of_the_same_tensors_changes_nothing():
    model = parse_model(altered(two(), change_subgraphs))
    assert list(model.params) == list(model.changeable) == ["t1", "t4"] and not model.fixed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_float, "a float model"),
        (change_axis, "quantized_dimension 7 does not fit 6 scales"),
        (change_shape, "does not fit 36 bytes"),
        (change_buffer, "names buffer 99"),
        (change_input, "a tensor that does not exist"),
        (change_none, "nothing to compress"),
    ],
)
def test_models_that_cannot_be_compressed(change, message):
    with pytest.raises(ValueError, match=message):
        parse_model(altered(two(per_channel=True), change))


def test_the_dimension_of_a_vector_is_repaired_with_a_notice():
    def change(model, tensors):
        tensors[B1].quantization.quantizedDimension = 3

    content = altered(two(per_channel=True), change)
    with pytest.warns(UserWarning, match="tensor 't2': quantized_dimension 3 of a vector is read as 0"):
        model = parse_model(content)
    assert model.graph.tensors[B1].axis == 0
    assert model.content == content  # the file keeps what it says


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4" + bytes(60), two()[:200], two()[:-8]], ids=range(5))
def test_the_file_is_named_where_it_is_damaged(content, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tflite: (not a \.tflite file|the \.tflite file is truncated|damaged)"):
        read(path)


@pytest.mark.parametrize("reader", [parse, parse_model])
def test_without_litert_the_extra_is_named(reader, monkeypatch):
    content = two()
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"pip install 'bqjax\[tflite\]'"):
        reader(content)
