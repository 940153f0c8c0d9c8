"""Networks of .tflite models: scored by LiteRT where the twin lacks an operator, and as tasks of a sweep."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from bqjax.cli.arguments import main
from bqjax.core.classification import batches
from bqjax.tflite.codes.search import QuantizedConfig, search_codes
from bqjax.tflite.container import load_model
from bqjax.tflite.examples import Examples
from bqjax.tflite.format.constants import constants
from bqjax.tflite.format.model import parse_model
from bqjax.tflite.interpret import interpret
from bqjax.tflite.network import interpreted_network, twin_network, unmeasured
from bqjax.tflite.task import _short_names, halves, quantized_task

sys.path.insert(0, str(Path(__file__).parent))
from builder import Builder, network
from kinds import hybrid, mixed


def with_logistic(per_channel=True):
    """A convolution and a dense layer with a LOGISTIC between them, which the twin does not know."""
    b = Builder(np.int8)
    x = b.activation([1, 6, 6, 3])
    h = b.conv(x, [8, 3, 3, 3], [1, 3, 3, 8], per_channel, stride=2, act="NONE")
    axes = b.tensor([2], np.int32, data=np.array([1, 2], np.int32))
    h = b.operator("MEAN", [h, axes], b.activation([1, 8]), "ReducerOptions", keepDims=False)
    h = b.operator("LOGISTIC", [h], b.tensor([1, 8], scale=1 / 256, zero=-128))
    return b.finish(x, b.softmax(b.dense(h, [5, 8]), [1, 5]))


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """Folder, model and examples: inputs and what the model says of them."""
    folder, content = tmp_path_factory.mktemp("unknown"), with_logistic()
    x = np.random.default_rng(0).integers(-128, 128, (60, 6, 6, 3)).astype(np.int8)
    y = interpret(content, x).reshape(60, -1).argmax(1).astype(np.int32)
    (folder / "net.tflite").write_bytes(content)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder, parse_model(content), x, y


def test_a_model_that_the_twin_does_not_know_is_compressed_by_litert(unknown, tmp_path, capsys):
    folder, model, x, y = unknown
    out, restored = tmp_path / "net.bq.safetensors", tmp_path / "net.tflite"
    arguments = ["compress", str(folder / "net.tflite"), "--data", str(folder / "data.npz"), "--max-drop", "10"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "operator 2, LOGISTIC, is not supported by the JAX twin: layers are not measured" in capsys.readouterr().out
    assert main(["decompress", str(out), "--out", str(restored)]) == 0
    new = parse_model(restored.read_bytes())
    assert any((new.params[name]["codes"] != model.params[name]["codes"]).any() for name in new.params)
    assert all((new.params[name]["bias"] == model.params[name]["bias"]).all() for name in new.params)
    searched = halves(60, 0)[0]
    after = interpret(restored.read_bytes(), x[searched]).reshape(len(searched), -1).argmax(1)
    assert (after != y[searched]).mean() <= 0.1


def test_only_8_bit_layers_that_serve_no_other_operator_are_searched(tmp_path, capsys):
    content = mixed()
    (tmp_path / "net.tflite").write_bytes(content)
    x = np.random.default_rng(0).integers(-128, 128, (40, 40)).astype(np.int8)
    np.savez(tmp_path / "data.npz", x=x, y=interpret(content, x).reshape(40, -1).argmax(1).astype(np.int32))
    arguments = ["compress", str(tmp_path / "net.tflite"), "--data", str(tmp_path / "data.npz"), "--max-drop", "10"]
    assert main([*arguments, "--out", str(tmp_path / "a.bq")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "has weights of type INT4, which the JAX twin does not support: layers are not measured" in shown
    assert "left: INT4 weight of FULLY_CONNECTED" in shown and "not searched: LiteRT runs the first subgraph" in shown
    assert "that shares its buffer with input 0 of SHAPE" in shown
    restored = load_model(tmp_path / "a.bq")
    last = next(c for c in constants(content) if not c.left and not c.uses[0].subgraph)
    differ = np.flatnonzero(np.frombuffer(restored, np.uint8) != np.frombuffer(content, np.uint8))
    assert len(differ) and last.start <= differ.min() and differ.max() < last.start + last.size


def test_a_hybrid_model_is_searched_on_float_examples(tmp_path, capsys):
    content = hybrid()
    (tmp_path / "net.tflite").write_bytes(content)
    x = np.random.default_rng(0).normal(0, 1, (40, 64)).astype(np.float32)
    y = interpret(content, x).reshape(40, -1).argmax(1).astype(np.int32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.savez(tmp_path / "other.npz", x=x.astype(np.int8), y=y)
    arguments = ["compress", str(tmp_path / "net.tflite"), "--max-drop", "20", "--out", str(tmp_path / "a.bq"), "--data"]
    assert main([*arguments, str(tmp_path / "data.npz")]) == 0
    assert "FULLY_CONNECTED, is not quantized to 8 bits, which the JAX twin does not support" in capsys.readouterr().out
    restored = parse_model(load_model(tmp_path / "a.bq"))
    assert len(np.unique(restored.params["t2"]["codes"])) < len(np.unique(parse_model(content).params["t2"]["codes"]))
    assert main([*arguments, str(tmp_path / "other.npz"), "--force"]) == 2
    assert "other.npz must hold 'x' float32 [n, ...]" in capsys.readouterr().err


@pytest.mark.slow  # every operator, in both programs; twin/test_graph.py holds the operators one by one
def test_litert_and_the_twin_score_alike(unknown):
    model = parse_model(network(np.int8, True))
    x = np.random.default_rng(1).integers(-128, 128, (11, 9, 9, 3)).astype(np.int8)
    y = interpret(model.content, x, kernels="builtin").reshape(11, -1).argmax(1).astype(np.int32)
    data = batches(x, (y + (np.arange(11) < 3)) % 7, 6)  # three wrong, one place of padding
    scores = [n.score for n in (twin_network(model), twin_network(model, "litert"), interpreted_network(model))]
    totals = [[jax.device_get(score(model.params, batch)) for batch in data] for score in scores]
    for found in totals:
        assert sum(float(sums["accuracy"]) for sums, _ in found) == 8 and sum(float(n) for _, n in found) == 11


def test_without_measurements_every_layer_loses_as_much_of_its_power(unknown):
    _, model, x, y = unknown
    net = interpreted_network(model)
    params, info = search_codes(net, batches(x, y, 60), unmeasured(net), QuantizedConfig(max_drop=0.05, layer_drop=None))
    assert info.baseline["accuracy"] == 1.0 and info.final["accuracy"] >= 0.95
    lost = {}
    for name, leaves in params.items():
        old, new = (np.asarray(p[name]["codes"]).astype(float) for p in (net.params, params))
        lost[name] = np.square(old - new).sum() / np.square(old).sum() / old.size
        assert leaves["bias"] is net.params[name]["bias"] or (leaves["bias"] == net.params[name]["bias"]).all()
    assert max(lost.values()) < 3 * min(lost.values())
    with pytest.raises(ValueError, match="no inputs of layers and no gradients"):
        net.inputs(params, x)


def test_halves_are_disjoint_and_whole():
    a, b = halves(11, 3)
    assert len(a) == 5 and sorted([*a, *b]) == list(range(11))
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        halves(1, 0)


@pytest.mark.parametrize(("dtype", "per_channel"), [(np.int8, True), (np.uint8, False)])
def test_a_task_brings_zero_points_to_the_shape_of_the_codes(tmp_path, dtype, per_channel):
    model = parse_model(network(dtype, per_channel))
    (tmp_path / "net.tflite").write_bytes(model.content)
    x = np.random.default_rng(0).integers(0, 100, (12, 9, 9, 3)).astype(dtype)
    given = Examples(x, np.arange(12, dtype=np.int32) % 7)
    task = quantized_task(tmp_path / "net.tflite", given, batch_size=4)
    assert list(task.params) == list(model.params)  # these are short as they are
    for name, leaves in task.params.items():
        codes, zero = leaves["codes"], leaves["zero_point"]
        assert zero.ndim == codes.ndim
        np.testing.assert_array_equal(zero.reshape(-1), model.params[name]["zero_point"])
        assert np.broadcast_shapes(zero.shape, codes.shape) == codes.shape
        if per_channel and codes.ndim == 4:
            assert zero.size in (codes.shape[0], codes.shape[-1])
    seen = [np.asarray(batch["inputs"]) for batch in (*task.calibration, *task.test)]
    counted = np.concatenate([np.asarray(batch["mask"]) for batch in (*task.calibration, *task.test)]) != 0
    got = np.concatenate(seen)[counted]
    np.testing.assert_array_equal(np.sort(got.reshape(12, -1), axis=0), np.sort(x.reshape(12, -1), axis=0))


def test_short_names_are_the_parts_of_fused_names_that_no_other_has():
    names = ["net/a/Conv;net/a/quant/Vars", "net/batch_norm;net/b/depth;net/c/dense", "net/c/dense", "net/x;net/y"]
    assert list(_short_names(names).values()) == ["a/Conv", "b/depth", "c/dense", "x"]
    assert _short_names(["one"]) == {"one": "one"} and _short_names(["m/w", "m/w#2"]) == {"m/w": "w", "m/w#2": "w#2"}
    assert _short_names(["a;b", "b;a"]) == {"a;b": "a;b", "b;a": "b;a"}


def test_figure_3_of_a_quantized_model(tmp_path):
    content = network(np.int8, True)
    x = np.random.default_rng(0).integers(-128, 128, (40, 9, 9, 3)).astype(np.int8)
    (tmp_path / "net.tflite").write_bytes(content)
    np.savez(tmp_path / "data.npz", x=x, y=interpret(content, x).reshape(40, -1).argmax(1).astype(np.int32))
    (tmp_path / "config.py").write_text(
        "from bqjax.experiment import RelativeBySize, SweepConfig\n"
        "from bqjax.tflite import quantized_task\n"
        "task = lambda data, progress: quantized_task(data / 'net.tflite', data / 'data.npz')\n"
        "config = SweepConfig(task=task, split='test',\n"
        "    data='net.tflite', figures=(RelativeBySize(magnitude=0.2, draws=1, largest=1),))\n"
    )
    out = tmp_path / "out"
    assert main(["sweep", "--config", str(tmp_path / "config.py"), "--data", str(tmp_path), "--out", str(out)]) == 0
    assert {p.suffix for p in out.iterdir()} == {".csv", ".json", ".png", ".svg", ".html"}
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    sizes = sorted((p["codes"].size for p in parse_model(content).params.values()), reverse=True)
    assert [int(row["size"]) for row in rows] == sizes[:1]
    assert all(row["leaf"].endswith("/codes") and row["kind"] == "relative" for row in rows)
    assert any(float(row["drop"]) > 0 for row in rows)
    assert all(float(row["paired_error"]) > 0 and float(row["error"]) > 0 for row in rows)  # over examples, too
