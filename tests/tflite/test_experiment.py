"""A quantized model through the whole command: searched on half of the examples, reported on the other."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from bqjax.tflite.experiment import KMeansCodes, Lossless, TFLiteConfig, beside

from bqjax.cli.arguments import main
from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.format.model import parse_model
from bqjax.tflite.interpret import interpret

sys.path.insert(0, str(Path(__file__).parent / "adapters" / "tflite"))
from builder import network


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    content = network(np.int8, True)
    model = parse_model(content)
    shape = model.graph.tensors[model.graph.inputs[0]].shape[1:]
    x = np.random.default_rng(0).integers(-128, 128, (40, *shape)).astype(np.int8)
    y = interpret(content, x).reshape(40, -1).argmax(1).astype(np.int32)
    (folder / "net.tflite").write_bytes(content)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder, content, model, x


def test_compress_decompress_and_run(model_and_data, tmp_path, capsys):
    folder, content, model, x = model_and_data
    out, table = tmp_path / "net.bq.safetensors", tmp_path / "net.md"
    arguments = ["compress", str(folder / "net.tflite"), "--data", str(folder / "data.npz"), "--max-drop", "10"]
    assert main([*arguments, "--out", str(out), "--table", str(table)]) == 0
    assert "B&Q, entropy-constrained" in table.read_text() and "zstd -19" in table.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bq.safetensors", "net.md"]
    restored = tmp_path / "restored.tflite"
    assert main(["decompress", str(out), "--out", str(restored)]) == 0
    smaller = restored.read_bytes()
    assert len(smaller) == len(content) and smaller != content
    new = parse_model(smaller)
    assert sum(len(np.unique(p["codes"])) for p in new.params.values()) < sum(
        len(np.unique(p["codes"])) for p in model.params.values()
    )
    assert interpret(smaller, x).shape == interpret(content, x).shape
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "drop, points" in shown and "accepted" in shown
    assert main([*arguments, "--out", str(out)]) == 2
    assert "exists: pass --force" in capsys.readouterr().err


def test_an_experiment_with_a_config(model_and_data, tmp_path):
    folder, _, _, _ = model_and_data
    config = tmp_path / "config.py"
    config.write_text(
        "from bqjax.tflite.codes.search import QuantizedConfig\n"
        "from bqjax.tflite.experiment import TFLiteConfig, beside\n"
        "method = QuantizedConfig(max_drop=0.1, steps=2)\n"
        "config = TFLiteConfig(model='net.tflite', examples='data.npz', method=method, beside=beside(method, parts=False))\n"
    )
    table = tmp_path / "t.md"
    out = tmp_path / "n.bq.safetensors"
    assert main(["compress", "--config", str(config), "--data", str(folder), "--out", str(out), "--table", str(table)]) == 0
    lines = [line.split("|") for line in table.read_text().splitlines() if line.startswith("| ")]
    rows = {cells[1].strip(): [c.strip() for c in cells[2:]] for cells in lines}
    assert rows["lossless"][3:5] == ["+0.00 ± 0.00", "100.0"]
    assert int(rows["B&Q, entropy-constrained"][5].replace(",", "")) == out.stat().st_size
    assert [rows["the .tflite file"][i] for i in range(3)] == ["20", "20", "40"]


def test_rows_beside_a_method():
    method = QuantizedConfig(max_drop=0.01, layer_drop=0.02, passes=2)
    rows = beside(method, 0.05)
    assert rows == {
        "B&Q, entropy-constrained, 5 %": QuantizedConfig(max_drop=0.05, layer_drop=0.05, passes=2),
        "no error compensation": QuantizedConfig(max_drop=0.01, layer_drop=0.02, passes=2, compensate=False),
        "no bias correction": QuantizedConfig(max_drop=0.01, layer_drop=0.02, passes=2, correct_bias=False),
        "k-means, 8 values": KMeansCodes(8),
        "lossless": Lossless(),
    }
    assert list(beside(method, parts=False)) == ["k-means, 8 values", "lossless"]
    assert beside(QuantizedConfig(layer_drop=None), 0.025)["B&Q, entropy-constrained, 2.5 %"] == QuantizedConfig(
        max_drop=0.025, layer_drop=None
    )


def test_what_the_data_folder_must_hold():
    named = TFLiteConfig(model="a/net.tflite", examples="b.npz")
    assert named.needs == "a/net.tflite and b.npz"
    assert dataclasses.replace(named, data="much").needs == "much"
    assert dataclasses.replace(named, examples=lambda folder, source: None).needs == "a/net.tflite"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--bins", "4"], "--bins cannot go with"),
        (["--lossless"], "--lossless cannot go with"),
        (["--data", "absent.npz"], "absent.npz"),
    ],
)
def test_what_does_not_fit_is_refused(model_and_data, extra, message, capsys, tmp_path):
    folder = model_and_data[0]
    data = [] if "--data" in extra else ["--data", str(folder / "data.npz")]
    assert main(["compress", str(folder / "net.tflite"), *data, *extra, "--out", str(tmp_path / "o.bq.safetensors")]) == 2
    assert message in capsys.readouterr().err


def test_examples_of_another_shape_are_refused(model_and_data, tmp_path, capsys):
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 3), np.int8), y=np.zeros(4, np.int32))
    out = str(tmp_path / "o.bq.safetensors")
    assert main(["compress", str(model_and_data[0] / "net.tflite"), "--data", str(tmp_path / "bad.npz"), "--out", out]) == 2
    assert "the model takes int8" in capsys.readouterr().err
