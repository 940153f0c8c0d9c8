"""Any .tflite file through the command line: stored without loss, its 8-bit layers with loss, and all of it in the table."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import kinds
from ai_edge_litert import schema_py_generated as schema

from bqjax import codec
from bqjax.cli.arguments import main
from bqjax.codec.plain import zstd_bytes
from bqjax.tflite import container
from bqjax.tflite.container import load_model, save_lossless, stored_constants
from bqjax.tflite.format.constants import constants, reported
from bqjax.tflite.format.model import parse_model


def run(*args):
    return main([str(a) for a in args])


def write(folder, content):
    (folder / "net.tflite").write_bytes(content)
    return folder / "net.tflite"


def _span(content, name):
    """Bytes and first byte of a constant."""
    return next((c.size, c.start) for c in constants(content) if c.name == name)


def rows(printed):
    """First cells of the printed table's lines."""
    return [line.split()[0] for line in printed.splitlines() if line.startswith("  ") and line.strip()]


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.__name__)
def test_lossless_restores_every_byte_and_lists_every_large_constant(kind, tmp_path, capsys):
    content = kind()
    source, out = write(tmp_path, content), tmp_path / "net.bq.safetensors"
    assert run("compress", source, "--lossless") == 0
    printed = capsys.readouterr().out
    assert run("decompress", out, "--out", tmp_path / "back.tflite") == 0
    assert (tmp_path / "back.tflite").read_bytes() == content
    assert out.stat().st_size < zstd_bytes(content) + 700  # of structure and header, which a model of a few kilobytes feels
    listed = reported(constants(content))
    shown = rows(printed)
    assert all(c.name.split()[0] in shown or f"weights/{c.name.split()[0]}" in shown for c in listed)
    total, bits = re.search(r"total +([\d,]+) weights +([\d.]+)", printed).groups()
    n = sum(c.n_weights for c in listed)
    assert total == f"{n:,}" and float(bits) == pytest.approx(8 * out.stat().st_size / n, abs=0.001)


@pytest.mark.parametrize("kind", [k for k in kinds.KINDS if k is not kinds.floats], ids=lambda kind: kind.__name__)
def test_with_loss_the_8_bit_layers_change_and_the_rest_is_listed(kind, tmp_path, capsys):
    content = kind()
    assert run("compress", write(tmp_path, content), "--bins", 4, "--out", tmp_path / "a.bq") == 0
    printed = capsys.readouterr().out
    restored = np.frombuffer(load_model(tmp_path / "a.bq"), np.uint8)
    changed = np.flatnonzero(restored != np.frombuffer(content, np.uint8))
    layers = [c for c in constants(content) if not c.left]
    inside = np.zeros(len(content), bool)
    for c in layers:
        inside[c.start : c.start + c.size] = True
        assert len(np.unique(restored[c.start : c.start + c.size])) <= 4
    assert changed.size and inside[changed].all()
    assert "accuracy was not measured" in printed
    flat = " ".join(printed.split())
    left = [c for c in reported(constants(content)) if c.left]
    assert flat.count("left: ") == len(left) and ("Compression with loss changes 8-bit weights" in flat) == bool(left)
    assert all(c.left.split()[-1] in flat for c in left)
    weights = sum(c.n_weights for c in reported(constants(content)))
    assert f"{weights:,} weights" in printed


def test_a_float_model_names_the_remedy_and_is_left_alone(tmp_path, capsys):
    source = write(tmp_path, kinds.floats())
    assert run("compress", source) == 2
    err = capsys.readouterr().err
    assert "net.tflite: a float model" in err and "--lossless makes any .tflite file smaller" in err
    assert not (tmp_path / "net.bq.safetensors").exists()


def test_lossless_needs_no_litert(tmp_path, monkeypatch, capsys):
    source = write(tmp_path, kinds.recurrent())
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    assert run("compress", source, "--lossless") == 0
    assert run("inspect", tmp_path / "net.bq.safetensors") == 0
    printed = capsys.readouterr().out
    assert all(f"t{i}" in rows(printed) or f"weights/t{i}" in rows(printed) for i in (1, 2, 3, 4, 8, 11))


def test_weights_of_other_operators_and_of_4_bits_are_coded(tmp_path):
    b = kinds.Builder()
    ids = b.tensor([1], np.int32)
    x = b.operator("EMBEDDING_LOOKUP", [ids, b.constant([200, 128])], b.activation([1, 128]))
    values = np.clip(np.round(b.rng.normal(0, 1.2, 128 * 256)), -8, 7).astype(int) & 15
    packed = (values[::2] | values[1::2] << 4).astype(np.uint8)
    w = b.tensor([256, 128], scale=np.full(256, 0.1), data=packed, kind="INT4")
    y = b.operator("FULLY_CONNECTED", [x, w, -1], b.activation([1, 256]), "FullyConnectedOptions")
    content = b.finish(ids, y)
    info = save_lossless(tmp_path / "m", content)
    assert load_model(tmp_path / "m") == content
    assert {(found.constant.type, found.leaf) for found in stored_constants(tmp_path / "m")} == {
        ("INT8", "weights/t1"),
        ("INT4", "weights/t3"),
    }
    stored = {leaf.name: leaf for leaf in codec.inspect(tmp_path / "m").leaves}
    # Within 3 % of the entropy of the values, and the table.
    entropy = lambda v: -sum(p * np.log2(p) for p in np.unique(v, return_counts=True)[1] / len(v)) * len(v) / 8  # noqa: E731
    assert stored["weights/t3"].code_bytes < 1.03 * entropy(values)
    assert stored["weights/t1"].code_bytes < 1.03 * entropy(np.frombuffer(content, np.int8, *_span(content, "t1")))
    assert info.file_bytes < zstd_bytes(content)


def test_what_packs_beyond_the_ratio_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "_MAX_RATIO", 64)
    b = kinds.Builder()
    b.tensor([100_000], np.float32, data=np.zeros(100_000, np.float32))
    content = b.finish_many([], [])
    save_lossless(tmp_path / "m", content)
    assert load_model(tmp_path / "m") == content
    assert (tmp_path / "m").stat().st_size < len(content) / 32


def test_a_layer_whose_buffer_serves_another_operator_is_left(tmp_path, capsys):
    b = kinds.Builder()
    x = b.activation([1, 40])
    w = b.constant([40, 40])
    h = b.operator("FULLY_CONNECTED", [x, w, -1], b.activation([1, 40]), "FullyConnectedOptions")
    h = b.operator("BATCH_MATMUL", [h, w], b.activation([1, 40]))
    content = b.finish(x, kinds._dense(b, h, [30, 40]))
    model = parse_model(content)
    assert list(model.params) == ["t1", "t5"] and list(model.changeable) == ["t5"]
    assert run("compress", write(tmp_path, content), "--bins", 4) == 0
    assert "that shares its buffer with input 1 of BATCH_MATMUL" in " ".join(capsys.readouterr().out.split())


def test_layers_of_later_subgraphs_change_too(tmp_path):
    content = kinds.signatures()
    model = parse_model(content)
    later = "t5"  # the first layer is that of both subgraphs
    assert list(model.params) == list(model.changeable) == ["t2", later] and "bias" in model.params[later]
    assert run("compress", write(tmp_path, content), "--method", "kmeans", "--bins", 4) == 0
    back = parse_model(load_model(tmp_path / "net.bq.safetensors"))
    assert [len(np.unique(layer["codes"])) for layer in back.params.values()] == [4, 4]
    tables = schema.ModelT.InitFromPackedBuf(back.content, 0)
    tensors = tables.subgraphs[1].tensors
    codes = next(tables.buffers[t.buffer].data for t in tensors if t.name == later.encode())
    assert len(np.unique(codes)) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "not the file itself: run `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html>", "it is an HTML page"),
        (b"PK\3\4" + bytes(60), "it is a zip archive"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
        (b"GGUF\3\0\0\0", "it is a GGUF file"),
        (b"\x80\2}q\0.....", "it is a Python pickle"),
        ((9).to_bytes(8, "little") + b'{"a": []}' + bytes(8), "it is a plain safetensors file"),
        (b"\x1c\0\0\0TFL2" + bytes(60), "its identifier is TFL2, not TFL3"),
        (bytes(64), "it lacks the identifier TFL3"),
    ],
)
@pytest.mark.parametrize("option", ["--lossless", "--bins=4"])
def test_files_that_are_none_are_named(content, message, option, tmp_path, capsys):
    assert run("compress", write(tmp_path, content), option) == 2
    err = capsys.readouterr().err
    assert "net.tflite" in err and "not a .tflite" in err and message in err and err.count("\n") == 1
    assert not (tmp_path / "net.bq.safetensors").exists()


@pytest.mark.data
def test_a_real_float_model(data_dir, tmp_path, capsys):
    source = data_dir / "kwt1" / "kwt1_float32.tflite"
    if not source.exists():
        pytest.skip("kwt1_float32.tflite is not there")
    assert run("compress", source, "--lossless", "--out", tmp_path / "a.bq") == 0
    assert load_model(tmp_path / "a.bq") == source.read_bytes()
    assert (tmp_path / "a.bq").stat().st_size < 0.95 * source.stat().st_size
