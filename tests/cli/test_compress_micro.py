"""Models for TFLM through the commands: compressed, inspected, and made plain again."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from builder import Builder, network
from command_line import refused, run

from bqjax.tflite import parse_model
from bqjax.tflite.interpret import interpret
from bqjax.tflite.micro import plain_twin, read_micro


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with examples, right by its own answers."""
    folder = tmp_path_factory.mktemp("micro")
    b = Builder()
    x = b.activation([1, 4, 4, 16])
    h = b.conv(x, [48, 1, 1, 16], [1, 4, 4, 48], True)
    h = b.conv(h, [48, 1, 1, 48], [1, 4, 4, 48], True)
    axes = b.tensor([2], np.int32, data=np.array([1, 2], np.int32))
    h = b.operator("MEAN", [h, axes], b.activation([1, 48]), "ReducerOptions", keepDims=False)
    content = b.finish(x, b.dense(h, [10, 48]))
    inputs = np.random.default_rng(0).integers(-128, 128, (60, 4, 4, 16)).astype(np.int8)
    (folder / "net.tflite").write_bytes(content)
    np.savez(folder / "data.npz", x=inputs, y=interpret(content, inputs).reshape(60, -1).argmax(1).astype(np.int32))
    (folder / "unsigned.tflite").write_bytes(network(np.uint8))
    return folder


def test_search_inspect_decompress(folder, tmp_path, capsys):
    out, table, report = tmp_path / "small.cc", tmp_path / "small.md", tmp_path / "small.html"
    arguments = ["compress", folder / "net.tflite", "--data", folder / "data.npz", "--target", "tflm", "--max-drop", "30"]
    assert run(*arguments, "--out", out, "--table", table, "--report", report) == 0
    shown = capsys.readouterr().out
    assert "wrote" in shown and "squeezed and plain" in shown and "in TFLM" in shown.replace("\n", " ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.cc", "small.html", "small.md", "small.tflite"]
    file = read_micro(tmp_path / "small.tflite")
    assert file.decoded and read_micro(out).content == file.content and len(file.content) < len(file.twin)
    assert f"{len(file.content):,}" in table.read_text()
    plain = tmp_path / "plain.tflite"
    assert run("decompress", out, "--out", plain) == 0
    assert plain.read_bytes() == file.twin and parse_model(file.twin).params
    capsys.readouterr()
    assert run("inspect", tmp_path / "small.tflite") == 0
    shown = capsys.readouterr().out
    assert "CONV_2D" in shown and "total" in shown and f"{len(file.content):,}" in shown
    assert "plain already" in refused(capsys, "decompress", plain, "--out", tmp_path / "again.tflite")
    assert "exists" in refused(capsys, *arguments, "--out", out)


def test_without_data(folder, tmp_path, capsys):
    net = folder / "net.tflite"
    assert run("compress", net, "--target", "tflm", "--lossless", "--keep-names", "--out", tmp_path / "a.tflite") == 0
    twin = read_micro(tmp_path / "a.tflite").twin
    assert twin == plain_twin(net.read_bytes(), keep_names=True)
    assert run("compress", net, "--target", "tflm", "--method", "kmeans", "--bins", "8", "--out", tmp_path / "b.tflite") == 0
    assert "accuracy was not measured" in capsys.readouterr().out
    assert {one.encoded.values for one in read_micro(tmp_path / "b.tflite").decoded} == {8}
    limited = "--max-arena", "1KB", "--out", tmp_path / "c.tflite"
    assert run("compress", net, "--target", "tflm", "--method", "kmeans", "--bins", "8", *limited) == 0
    assert all(one.codes.size <= 1000 for one in read_micro(tmp_path / "c.tflite").decoded)


def test_what_cannot_be_is_refused(folder, tmp_path, capsys):
    net, out = folder / "net.tflite", tmp_path / "x.tflite"
    assert "no kernels for uint8" in refused(
        capsys, "compress", folder / "unsigned.tflite", "--target", "tflm", "--lossless", "--out", out
    )
    assert "--keep-names cannot go with" in refused(capsys, "compress", net, "--keep-names", "--out", out)
    assert "--coder cannot go with" in refused(capsys, "compress", net, "--target", "tflm", "--coder", "raw", "--out", out)
    assert "--max-arena 'much' is no size" in refused(
        capsys, "compress", net, "--target", "tflm", "--max-arena", "much", "--lossless", "--out", out
    )
    assert "give 0 or more" in refused(
        capsys, "compress", net, "--target", "tflm", "--max-decode", "-1", "--lossless", "--out", out
    )
    assert "--target cannot go with WEIGHTS" in refused(capsys, "compress", tmp_path / "w.safetensors", "--target", "tflm")
    assert not out.exists()
    (tmp_path / "cut.tflite").write_bytes(net.read_bytes()[:500])
    assert "truncated or damaged" in refused(capsys, "inspect", tmp_path / "cut.tflite")


def test_where_tflm_is_absent(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tflite_micro", None)
    assert run("compress", folder / "net.tflite", "--target", "tflm", "--lossless", "--out", tmp_path / "a.tflite") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "was not checked: running a file in TFLM needs tflite-micro" in shown and "pip install 'bqjax[tflm]'" in shown
