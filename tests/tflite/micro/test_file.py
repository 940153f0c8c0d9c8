"""Files for TFLM and their plain twins: sizes, what stays plain and why, and the same outputs in TFLM and LiteRT."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import kinds
from builder import Builder, network

from bqjax.tflite.format.records import pack, unpack
from bqjax.tflite.interpret import interpret
from bqjax.tflite.micro import Limits, c_array, micro_content, parse_micro, plain_twin, read_micro
from bqjax.tflite.micro.c_source import bytes_of_array
from bqjax.tflite.micro.squeeze import compacted, expanded, squeezed

SKIPPED = "needs tflite-micro, which there is for Linux on x86-64: pip install 'bqjax[tflm]'"


def few_values(content, n=5):
    """The model with few values in its 8-bit weights, and scales of biases as converters write them."""
    model = unpack(content)
    for operator in model["subgraphs"][0]["operators"]:
        x, w, b = (model["subgraphs"][0]["tensors"][i]["quantization"] for i in operator["inputs"][:3])
        b["scale"] = tuple((np.float32(x["scale"][0]) * np.array(w["scale"], np.float32)).tolist())
    for tensor in model["subgraphs"][0]["tensors"]:
        if tensor.get("data") and tensor.get("type") == 9:
            codes = np.frombuffer(tensor["data"], np.int8).astype(int)
            tensor["data"] = (codes // n).astype(np.int8).tobytes()
    return pack(model)


def wide(per_channel=True):
    """A network with layers that are large enough to be worth encoding."""
    b = Builder()
    x = b.activation([1, 4, 4, 20])
    h = b.conv(x, [64, 1, 1, 20], [1, 4, 4, 64], per_channel)
    h = b.depthwise(h, [1, 3, 3, 64], [1, 4, 4, 64], per_channel=per_channel)
    h = b.conv(h, [32, 1, 1, 64], [1, 4, 4, 32], per_channel)
    return b.finish(x, b.conv(h, [8, 1, 1, 32], [1, 4, 4, 8], per_channel, act="NONE"))


WIDE = few_values(wide(), 20)


def test_twin_and_file_determine_each_other():
    content = micro_content(WIDE)
    file = parse_micro(content)
    assert file.twin == plain_twin(WIDE) and micro_content(file.twin) == content and file.short
    assert len(content) < len(file.twin) < len(WIDE)
    assert {one.kind for one in file.decoded} <= {"lut", "huffman"} and file.decoded
    again = parse_micro(file.twin)
    assert not again.short and not again.decoded and again.twin == file.twin
    with pytest.raises(ValueError, match="holds DECODE operators already"):
        micro_content(content)


@pytest.mark.parametrize("content", [network(np.int8, True), network(np.int8), WIDE], ids=["channels", "tensors", "wide"])
def test_squeezing_changes_no_output(content):
    shape = (8, 4, 4, 20) if content is WIDE else (8, 9, 9, 3)
    x = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    twin = plain_twin(content)
    np.testing.assert_array_equal(interpret(twin, x), interpret(content, x))
    assert b"t1" not in twin and b"t1" in plain_twin(content, keep_names=True)
    model = squeezed(unpack(content))
    assert expanded(compacted(model)) == model
    assert len(pack(compacted(model))) <= len(pack(model))


def test_biases_are_left_out_where_their_scales_follow():
    model = squeezed(unpack(WIDE))
    biases = [o["inputs"][2] for o in model["subgraphs"][0]["operators"]]
    short = compacted(model)["subgraphs"][0]["tensors"]
    assert not any(short[i]["quantization"].get("scale") for i in biases)
    tensors = model["subgraphs"][0]["tensors"]
    tensors[biases[0]]["quantization"] = {**tensors[biases[0]]["quantization"], "scale": (0.125,) * 64}
    assert compacted(model)["subgraphs"][0]["tensors"][biases[0]]["quantization"]["scale"] == (0.125,) * 64
    assert expanded(compacted(model)) == model


@pytest.mark.parametrize("keep_names", [False, True])
def test_tflm_makes_the_same_of_both(keep_names):
    pytest.importorskip("tflite_micro", reason=SKIPPED)
    import jax

    from bqjax.tflite.micro.runtime import compare_in_tflm, random_inputs

    content, twin = micro_content(WIDE, keep_names=keep_names), plain_twin(WIDE, keep_names=keep_names)
    inputs = random_inputs(twin, 20, jax.random.key(0))
    found = compare_in_tflm(content, twin, inputs)
    assert found[:2] == (20, 20) and found.arena_after > found.arena_before > 1000
    original = compare_in_tflm(WIDE, twin, inputs)
    assert original[:2] == (20, 20)


def test_limits():
    free = parse_micro(micro_content(WIDE))
    small = parse_micro(micro_content(WIDE, limits=Limits(arena=1024)))
    assert {one.codes.size for one in small.decoded} == {one.codes.size for one in free.decoded if one.codes.size <= 1024}
    none = parse_micro(micro_content(WIDE, limits=Limits(decode_ms=0)))
    assert not none.decoded and len(none.content) > len(free.content)
    fast = parse_micro(micro_content(WIDE, limits=Limits(decode_ms=0.002)))
    assert len(free.content) <= len(fast.content) <= len(none.content)
    for settings in ({"arena": -1}, {"decode_ms": -1.0}, {"decode_ms": float("nan")}):
        with pytest.raises(ValueError, match="give 0 or more"):
            Limits(**settings)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (kinds.recurrent, "INT8, input 1 of UNIDIRECTIONAL_SEQUENCE_LSTM"),
        (kinds.other_operators, "INT8, input 1 of SVDF"),
        (kinds.four_bits, "INT4 weight of FULLY_CONNECTED"),
        (kinds.mixed, "weight of FULLY_CONNECTED in subgraph 1"),
        (kinds.mixed, "weight of FULLY_CONNECTED that is input 0 of SHAPE too"),
    ],
)
def test_what_stays_plain_is_listed(kind, reason):
    file = parse_micro(micro_content(kind()))
    assert reason in {why for why, _ in file.left.values()}


def test_networks_that_tflm_cannot_run_are_refused():
    with pytest.raises(ValueError, match=r"a uint8 weight of DEPTHWISE_CONV_2D: TFLM has no kernels.*leave --target tflm out"):
        micro_content(network(np.uint8))
    with pytest.raises(ValueError, match=r"no int8 weights .* that TFLM could decode .*FLOAT32 weight of FULLY_CONNECTED"):
        micro_content(kinds.floats())


def test_weights_that_no_kernel_decodes_stay_plain():
    model = unpack(WIDE)
    graph = model["subgraphs"][0]
    middle, outside = graph["operators"][0]["inputs"][1], graph["operators"][2]["inputs"][1]
    scales = {"scale": (0.1,) * 20, "zero_point": (0,) * 20, "axis": 2}
    graph["tensors"][middle] |= {"quantization": scales, "shape": (64, 1, 20, 1)}
    graph["inputs"] = (*graph["inputs"], outside)
    reasons = {why for why, _ in parse_micro(micro_content(pack(model))).left.values()}
    assert "weight of CONV_2D that is an input or output of the graph" in reasons
    assert "weight of CONV_2D with 20 scales along dimension 2: kernels decode the first and the last" in reasons


def test_c_source(tmp_path):
    content = micro_content(WIDE)
    path = tmp_path / "model.cc"
    path.write_text(c_array(content, "model"))
    assert read_micro(path).content == content
    assert bytes_of_array("unsigned char m[2] = {0x0a, 0xFF};\nunsigned int m_len = 2;") == b"\x0a\xff"
    assert "_2x[]" in c_array(b"a", "2x")
    path.write_text("int main() { return 0; }")
    with pytest.raises(ValueError, match=r"model.cc: no array of bytes"):
        read_micro(path)
