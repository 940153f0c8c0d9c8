"""DECODE operators put into a model and taken out again; golden files made by another writer; damaged files."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

sys.path.insert(0, str(Path(__file__).parent))
from builder import Builder, network
from decoder import SKIPPED, decoder

from bqjax.tflite.format.records import pack, unpack
from bqjax.tflite.micro.encoded import parse_ancillary
from bqjax.tflite.micro.file import micro_content, parse_micro, plain_twin
from bqjax.tflite.micro.huffman import encode_huffman
from bqjax.tflite.micro.lut import encode_lut
from bqjax.tflite.micro.operators import holds_decode, with_decode, without_decode
from bqjax.tflite.micro.pruning import encode_pruning


def shared():
    """Two dense layers of one weight."""
    b = Builder()
    x = b.activation([1, 64])
    w = b.tensor([64, 64], scale=0.01, data=b.rng.integers(-3, 4, (64, 64)).astype(np.int8))
    bias = [b.tensor([64], np.int32, scale=0.0005, data=np.arange(64, dtype=np.int32)) for _ in range(2)]
    h = b.operator("FULLY_CONNECTED", [x, w, bias[0]], b.activation([1, 64]), "FullyConnectedOptions")
    return b.finish(x, b.operator("FULLY_CONNECTED", [h, w, bias[1]], b.activation([1, 64]), "FullyConnectedOptions"))


def test_each_reader_has_a_decode_of_its_own_directly_before_it():
    plain = unpack(shared())
    codes = np.frombuffer(plain["subgraphs"][0]["tensors"][1]["data"], np.int8)
    model = with_decode(plain, {1: encode_lut(codes.reshape(64, 64))})
    kinds = [model["codes"][o["code"]].get("custom_code") for o in model["subgraphs"][0]["operators"]]
    assert [k == b"TFLM_DECODE" for k in kinds] == [True, False, True, False] and holds_decode(model)
    first, one, second, other = model["subgraphs"][0]["operators"]
    assert first["inputs"] == second["inputs"] and first["outputs"] != second["outputs"]
    assert (one["inputs"][1], other["inputs"][1]) == (*first["outputs"], *second["outputs"])
    back, found = without_decode(model)
    assert back == plain and [f.reader for f in found] == ["FULLY_CONNECTED"]
    assert pack(without_decode(unpack(pack(model)))[0]) == pack(plain)


def test_a_shared_weight_runs_in_tflm():
    pytest.importorskip("tflite_micro", reason=SKIPPED)
    from bqjax.tflite.micro.runtime import compare_in_tflm

    content = micro_content(shared())
    inputs = [[x[None]] for x in np.random.default_rng(0).integers(-128, 128, (20, 64)).astype(np.int8)]
    assert compare_in_tflm(content, plain_twin(shared()), inputs)[:2] == (20, 20)


@pytest.mark.data
@pytest.mark.parametrize("name", ("lut4_pertensor", "lut4_perchannel", "huffman", "mixed"))
def test_golden_files_of_another_writer(name, data_dir):
    """Made from keyword spotting with 16 values; each decodes to its plain twin's weights (shared/data/tflm)."""
    if not (folder := data_dir / "tflm").is_dir():
        pytest.skip("needs tflm of the real data")
    channel = "_channel" if name == "lut4_perchannel" else ""
    plain = unpack((folder / f"proof_kws_plain_16values{channel}.tflite").read_bytes())
    model, found = without_decode(unpack((folder / f"proof_kws_{name}.tflite").read_bytes()))
    tensors = [m["subgraphs"][0]["tensors"] for m in (model, plain)]
    assert [t["data"] for t in tensors[0]] == [t["data"] for t in tensors[1]]
    kinds = {"lut4_pertensor": {"lut"}, "lut4_perchannel": {"lut"}, "huffman": {"huffman"}}
    assert {f.kind for f in found} == kinds.get(name, {"lut", "huffman", "pruning"})
    assert [o["inputs"] for o in model["subgraphs"][0]["operators"]] == [o["inputs"] for o in plain["subgraphs"][0]["operators"]]


CODES = np.repeat(np.arange(-4, 4), 8).astype(np.int8)
ENCODED = {"lut": encode_lut(CODES), "huffman": encode_huffman(CODES), "pruning": encode_pruning(CODES, np.zeros(1, np.int8))}


@pytest.mark.parametrize(
    ("kind", "header", "cut", "message"),
    [
        ("lut", {0: 9}, None, "encoding 9 of version 1 is not known"),
        ("lut", {1: 2}, None, "encoding 0 of version 2"),
        ("lut", {5: 0xF0}, None, "look-up indices of 0 bits"),
        ("lut", {5: 0xF7}, None, "entries of 1 look-up tables of 7 bits"),
        ("lut", {6: 129}, None, "a stride of 129"),
        ("lut", {}, "data", "do not fit"),
        ("lut", {}, "ancillary", "entries of 1 look-up tables"),
        ("huffman", {}, "data", "ends after|within its last"),
        ("huffman", {}, "ancillary", "no codeword as at bit"),
        ("huffman", {5: 0xF0}, None, "no codeword as at bit"),
        ("pruning", {}, "ancillary", "a bitmap of 56 values, 55 are stored"),
        ("pruning", {}, "data", "fewer than a bit a value"),
    ],
)
def test_a_damaged_tensor_is_refused(kind, header, cut, message):
    encoded = ENCODED[kind]
    extra = bytearray(encoded.ancillary)
    for at, byte in header.items():
        extra[at] = byte
    data = encoded.data[: len(encoded.data) // 2] if cut == "data" else encoded.data
    encoded = replace(encoded, data=data, ancillary=bytes(extra[:-1] if cut == "ancillary" else extra))
    with pytest.raises(ValueError, match=message):
        without_decode(unpack(decoder(CODES, encoded)))


def test_tables_that_do_not_fit_the_tensor_are_refused():
    encoded = encode_lut(np.zeros((3, 4, 2), np.int8), 0)
    with pytest.raises(ValueError, match=r"4 look-up tables along dimension 0 of a tensor \(3, 4, 2\) with scales along 1"):
        without_decode(unpack(decoder(np.zeros((3, 4, 2), np.int8), encoded, (0,) * 4, 1)))
    with pytest.raises(ValueError, match="fewer than a bit a value"):
        without_decode(unpack(decoder(np.zeros(300, np.int8), encoded)))
    with pytest.raises(ValueError, match="an ancillary tensor of 3 bytes"):
        parse_ancillary(b"abc")


def test_a_file_that_decodes_to_far_more_than_it_holds_is_refused():
    plain = unpack(shared())
    model = with_decode(plain, {1: encode_lut(np.zeros((64, 64), np.int8))})
    graph = model["subgraphs"][0]
    for i in range(400):  # outputs of the same weights, no two alike
        graph["tensors"].append({**graph["tensors"][1], "shape": (64, 64), "quantization": {"scale": (i + 1.0,)}})
        decode = graph["operators"][0]
        graph["operators"].insert(0, {**decode, "outputs": (len(graph["tensors"]) - 1,)})
    with pytest.raises(ValueError, match="far more values than the file has bits"):
        without_decode(model)


def test_mutated_files_are_refused_or_read_in_little_time():
    content = micro_content(network(np.int8, True, seed=2), kinds=("huffman", "lut", "pruning"))
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(150):
        new = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(new)))
            new[at] = int(rng.integers(256))
        new = new[: int(rng.integers(len(new)))] if i % 5 == 0 else new
        start = time.process_time()
        try:
            parse_micro(bytes(new))
        except ValueError as error:
            assert str(error)
            refused += 1
        assert time.process_time() - start < 2
    assert refused > 30
