"""A quantized model through the whole command: searched on half of the examples, reported on the other."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from bqjax.cli.arguments import main
from bqjax.experiment import reference, run_row
from bqjax.methods import KMeans, Uncompressed
from bqjax.tflite import CODES, Examples, IntegerBinAndQuant, QuantizedConfig, beside, parse_model, tflite_task
from bqjax.tflite import method as method_module
from bqjax.tflite.codes.search import measure_layers
from bqjax.tflite.container import load_model
from bqjax.tflite.interpret import interpret
from bqjax.tflite.task import halves

sys.path.insert(0, str(Path(__file__).parent))
from builder import network
from tiny import before as tiny_before
from tiny import tiny_task


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
    assert "Search, on calibration data" in capsys.readouterr().out
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "drop, points" in shown and "accepted" in shown
    assert main([*arguments, "--out", str(out)]) == 2
    assert "exists: pass --force" in capsys.readouterr().err


@pytest.mark.slow
def test_all_rows_of_a_config(model_and_data, tmp_path):
    """The same task through ``bqjax compare``: integer codes, k-means on them, and lossless."""
    folder, content, _, _ = model_and_data
    config = tmp_path / "config.py"
    config.write_text(
        "from bqjax.experiment import Experiment\n"
        "from bqjax.tflite import IntegerBinAndQuant, QuantizedConfig, beside, tflite_task\n"
        "method = IntegerBinAndQuant(search=QuantizedConfig(max_drop=0.1, steps=2))\n"
        "config = Experiment(\n"
        "    task=lambda data, progress: tflite_task(data / 'net.tflite', data / 'data.npz'), data='net.tflite and data.npz',\n"
        "    methods=(method, *beside(method, parts=False)))\n"
    )
    out = tmp_path / "rows"
    assert main(["compare", "--config", str(config), "--data", str(folder), "--out", str(out)]) == 0
    content_json = json.loads((out / "compare.json").read_text())
    rows = {row["method"]: row for row in content_json["rows"]}
    assert list(rows) == ["B&Q, entropy-constrained", "k-means, 8 values", "lossless"]
    assert (content_json["n_test"], content_json["n_calibration"], content_json["test"]) == (20, 20, {"accuracy": 1.0})
    assert content_json["float_bytes"] == len(content)
    lossless = rows["lossless"]
    assert (lossless["difference"], lossless["standard_error"], lossless["agreement"]) == (0.0, 0.0, 1.0)
    assert load_model(out / "rows" / lossless["file"]) == content
    shared = parse_model(load_model(out / "rows" / rows["k-means, 8 values"]["file"]))
    assert max(len(np.unique(layer["codes"])) for layer in shared.params.values()) == 8
    table = (out / "compare.md").read_text()
    assert "| the .tflite file | 100.00 |" in table and "whole .tflite file" in table
    assert "step of the grid" in (out / "report.html").read_text()  # of the first row's search


def test_every_figure_of_a_row(model_and_data, tmp_path):
    """Against LiteRT itself, run on the file that is restored."""
    folder, content, model, x = model_and_data
    wrong = (np.load(folder / "data.npz")["y"] + (np.arange(40) % 5 == 0)) % 7  # the model is right on four fifths
    task = tflite_task(folder / "net.tflite", Examples(x, wrong.astype(np.int32)), seed=3)
    before = reference(task)
    row, tree, info = run_row(task, KMeans(k=2, rules=CODES), tmp_path / "net", before, key=jax.random.key(0))
    assert info is None
    restored = load_model(tmp_path / "net")
    was, now = (interpret(c, x).reshape(40, -1).argmax(1) for c in (content, restored))
    search, test = halves(40, 3)
    right, right_now = was == wrong, now == wrong
    assert before.test["accuracy"] == right[test].mean() and before.calibration["accuracy"] == right[search].mean()
    assert (row.after, row.calibration) == (right_now[test].mean(), right_now[search].mean())
    changed = (right_now.astype(float) - right)[test]
    assert row.difference == pytest.approx(changed.mean()) and row.standard_error == pytest.approx(changed.std() / np.sqrt(20))
    assert row.agreement == (now == was)[test].mean() < 1
    size, weights = (tmp_path / "net").stat().st_size, sum(layer["codes"].size for layer in model.params.values())
    assert (row.file_bytes, row.ratio, row.bits_per_weight) == (size, len(content) / size, 8 * size / weights)
    for name, layer in parse_model(restored).params.items():
        np.testing.assert_array_equal(tree[name]["codes"], layer["codes"])


@pytest.mark.slow
def test_layers_are_measured_once_for_a_task(model_and_data, tmp_path, monkeypatch):
    folder, _, _, _ = model_and_data
    measured = []
    monkeypatch.setattr(method_module, "measure_layers", lambda *a, **k: measured.append(1) or measure_layers(*a, **k))
    search = QuantizedConfig(lmbda=1e-4, layer_drop=None)
    method = IntegerBinAndQuant(search=search, positions=64)
    for _ in range(2):  # in the next process, the measurements are read
        task = tflite_task(folder / "net.tflite", folder / "data.npz")
        before = reference(task)
        for i, each in enumerate((method, replace(method, search=replace(search, compensate=False)))):
            state = tmp_path / "state" / f"{i}.jsonl"
            state.parent.mkdir(exist_ok=True)
            run_row(task, each, tmp_path / f"net{i}", before, key=jax.random.key(0), force=True, state_path=state)
    assert len(measured) == 1 and len(list((tmp_path / "state").glob("layers-*.safetensors"))) == 1
    with pytest.raises(ValueError, match="has no integer codes: make it by tflite_task"):
        run_row(tiny_task(), method, tmp_path / "tiny", tiny_before(), key=jax.random.key(0))


def test_rows_beside_a_method():
    search = QuantizedConfig(max_drop=0.01, layer_drop=0.02, passes=2)
    method = IntegerBinAndQuant(search=search, draws=3)
    baselines = KMeans(k=8, rules=CODES, label="k-means, 8 values"), Uncompressed(label="lossless")
    assert beside(method, 0.05) == (
        replace(method, search=replace(search, max_drop=0.05, layer_drop=0.05), label="B&Q, entropy-constrained, 5 %"),
        replace(method, search=replace(search, compensate=False), label="no error compensation"),
        replace(method, search=replace(search, correct_bias=False), label="no bias correction"),
        *baselines,
    )
    assert beside(method, parts=False) == baselines
    (other, *_) = beside(IntegerBinAndQuant(search=QuantizedConfig(layer_drop=None)), 0.025)
    assert other.search == QuantizedConfig(max_drop=0.025, layer_drop=None)


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
