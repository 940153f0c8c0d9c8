"""``bqjax compress --max-drop`` and ``--target-size`` with no plan: one lmbda for all leaves, as it is typed."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from command_line import refused, run
from tiny import data, forward, params

from bqjax import codec, decode
from bqjax.adapters.safetensors import open_weights
from bqjax.core.tree import named_leaves

CONFIG = """
from bqjax.core import classification_outputs
from bqjax.experiment import Experiment
from bqjax.methods import KMeans, RateDistortion
from tiny import forward, tiny_task

config = Experiment(
    task=lambda data_dir, progress: tiny_task(outputs=classification_outputs(forward)),
    methods=(KMeans(k=4), RateDistortion(lmbda=1e-3, steps=4, scan=2)),
    coder="ans",
)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return "tiny.py"


def test_a_size_is_met_and_the_file_decodes_to_weights(config, tmp_path, capsys):
    assert run("compress", "--config", config, "--target-size", "0.9KB", "--out", "net", "--report", "net.html") == 0
    printed = capsys.readouterr().out
    assert 700 < (tmp_path / "net").stat().st_size <= 900
    assert codec.inspect(tmp_path / "net").metadata["method"] == "rate-distortion, 0.9KB"
    assert "predicted distortion" in printed and "hidden/kernel" in printed
    assert "predicted distortion" in (tmp_path / "net.html").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "net.html", "tiny.py"]
    assert run("decompress", "net", "--out", "net.safetensors") == 0
    decoded = named_leaves(decode(codec.load("net")))
    for name, tensor in open_weights("net.safetensors").items():
        np.testing.assert_array_equal(tensor.read(), np.asarray(decoded[name]))


def test_a_drop_is_kept_on_calibration_data_with_room_where_a_confidence_asks_for_it(config, tmp_path):
    inputs, labels = (x[90:150] for x in data())
    sizes, accuracies = [], []
    for confidence in (0.5, 0.95):
        out = f"net{confidence}"
        assert run("compress", "--config", config, "--max-drop", 5, "--confidence", confidence, "--out", out) == 0
        weights = jax.tree.map(np.asarray, decode(codec.load(out)))
        accuracies.append(float((forward(weights, inputs).argmax(1) == labels).mean()))
        sizes.append((tmp_path / out).stat().st_size)
    assert codec.inspect(out).metadata["method"] == "rate-distortion, drop 5 at 0.95"
    before = float((forward(params(), inputs).argmax(1) == labels).mean())
    assert all(before - after <= 0.05 + 1e-6 for after in accuracies)
    assert sizes[0] <= sizes[1]


def test_what_cannot_work_is_refused(config, tmp_path, capsys):
    def says(*args):
        return refused(capsys, "compress", "--config", config, "--out", "net", *args)

    assert "no lmbda reaches 10 bytes: the nearest" in says("--target-size", "10")
    assert "--plan is one for --target-size or --max-drop" in says("--plan")
    assert "--method cannot go with --target-size or --max-drop" in says("--max-drop", 1, "--method", "k-means")
    (tmp_path / "tiny.py").write_text(CONFIG.replace("classification_outputs(forward)", "None"))
    said = says("--max-drop", 1)
    assert "has no outputs" in said and "pass --plan" in said
    assert not (tmp_path / "net").exists()
