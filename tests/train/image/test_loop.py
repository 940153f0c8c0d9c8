"""Training on the digits: resumed after a kill, on several devices, with a full disk."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bqjax import codec
from bqjax.quantizers import QuantizerConfig
from train.checkpoint import Checkpoints, checked_config
from train.image.config import GWKPhase, TrainConfig
from train.image.evaluation import Devices
from train.image.files import read_quantized
from train.image.loop import run, score
from train.main import main

ROOT = Path(__file__).resolve().parents[3]
CONFIG = TrainConfig(
    model="digits",
    dataset="digits",
    float_epochs=4,
    epochs=4,
    quantizer=QuantizerConfig(weight_bits=1, activation_bits=8),
    keep_float=("conv1", "fc2"),
    batch_size=64,
    learning_rate=3e-3,
    hessian_epochs=2,
    distillation=0.5,
)
SOURCE = """
from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig
config = {config!r}
"""


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def start(config, folder, **environment):
    """A training in a process of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.py"
    path.write_text(SOURCE.format(config=config))
    command = [sys.executable, "-m", "train", "--config", str(path), "--out", str(folder / "run")]
    command += ["--distributed"] if "JAX_NUM_PROCESSES" in environment else []
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder, said = tmp_path_factory.mktemp("whole"), []
    figures = run(CONFIG, folder, say=said.append)
    return folder, figures, said


def test_training_learns(whole):
    folder, figures, said = whole
    records = lines(folder)
    assert [(r["phase"], r["epoch"]) for r in records] == [(p, e) for p in ("float", "ewgs") for e in range(1, 5)]
    assert records[3]["train_loss"] < 0.75 * records[0]["train_loss"]
    assert figures["float accuracy"] > 0.7
    assert figures["ewgs accuracy"] > 0.7
    # EWGS's scale is measured once, in the middle, and what it met is said.
    assert [r["epoch"] for r in records if "delta" in r] == [2]
    assert [line for line in said if line.startswith("ewgs 2/4: delta ")]
    stored = {leaf.name: leaf for leaf in codec.inspect(folder / "model.bq.safetensors").leaves}
    assert (stored["network/conv2/kernel"].k, stored["network/conv2/kernel"].code_bytes) == (2, 3 * 3 * 16 * 32 // 8)
    again = run(CONFIG, folder, say=lambda line: None if "model.bq" in line else pytest.fail(f"trained again: {line}"))
    assert again == figures
    assert lines(folder) == records


@pytest.mark.slow  # test_fit.py interrupts the loop itself
def test_resumed_after_a_kill_the_numbers_are_the_same(whole, tmp_path):
    process = start(CONFIG, tmp_path / "killed")
    folder = tmp_path / "killed" / "run"
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            log = folder / "metrics.jsonl"
            if log.is_file() and log.read_text().count("\n") >= 5:
                break
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it was killed"
    finally:
        process.kill()  # SIGKILL
        process.wait()
    before = len(lines(folder))
    said = []
    figures = run(CONFIG, folder, say=said.append)
    epochs = [line for line in said if "validation" in line]
    assert epochs and len(epochs) < 8, (before, said)
    assert lines(folder) == lines(whole[0])
    assert figures == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_four_devices_give_the_losses_of_one(whole, tmp_path, processes):
    config = dataclasses.replace(CONFIG, epochs=0)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {"JAX_NUM_CPU_DEVICES": str(4 // processes)}
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    started = [start(config, tmp_path / "four", **environment, JAX_PROCESS_ID=str(i)) for i in range(processes)]
    try:
        assert [process.wait(timeout=150) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()
    found, expected = lines(tmp_path / "four" / "run"), lines(whole[0])[:4]
    assert len(found) == 4
    # Sums in another order differ in the last bits, and training amplifies them.
    for key in ("train_loss", "loss"):
        np.testing.assert_allclose([r[key] for r in found], [r[key] for r in expected], rtol=1e-3)


@pytest.mark.parametrize("schedule", [pytest.param("epoch", marks=pytest.mark.slow), "step"])
def test_clustered_weights(schedule, whole, tmp_path):
    gwk = GWKPhase(epochs=4, schedule=schedule, cv=4, pw=8, bits=5)
    if schedule == "step":
        gwk = dataclasses.replace(gwk, rate=0.2, tune_epochs=2, weighting="fisher")
    quantizer = QuantizerConfig(weight_bits=8, activation_bits=8)
    fields = {"quantizer": quantizer, "gwk": gwk, "keep_float": ("conv1", "fc?"), "initial": str(whole[0] / "model.safetensors")}
    config = dataclasses.replace(CONFIG, float_epochs=0, epochs=0, hessian_epochs=0, **fields)
    said = []
    figures = run(config, tmp_path, say=said.append)
    assert figures["gwk accuracy"] > 0.6
    assert any("bits per clustered weight (formula)" in line for line in said)
    clustered = [r for r in lines(tmp_path) if r["phase"] == "gwk"]
    assert clustered[-1]["train_loss"] < clustered[0]["train_loss"]
    if schedule == "step":
        tuned = [r for r in lines(tmp_path) if r["phase"] == "tune"]
        assert tuned[-1]["train_loss"] < 1.05 * clustered[-1]["train_loss"]
        assert figures["tuned accuracy"] > 0.6
    assert (tmp_path / "curves.png").stat().st_size > 5000
    stored = {leaf.name: leaf for leaf in codec.inspect(tmp_path / "model.bq.safetensors").leaves}
    assert stored["network/conv2/kernel"].table_dtype == "uint8"
    assert stored["network/conv1/kernel"].kind == "affine"
    # From checkpoints alone, and the file anew: the same figures.
    assert run(config, tmp_path, say=lambda line: None) == figures


@pytest.mark.parametrize(("epochs", "codebook_bits"), [(4, None), (6, 6), pytest.param(0, None, marks=pytest.mark.slow)])
def test_training_starts_from_the_solver(epochs, codebook_bits, whole, tmp_path):
    gwk = GWKPhase(
        epochs=epochs,
        tune_epochs=0 if epochs else 12,  # codebooks alone are slow to recover from so few bits
        tune_learning_rate=1e-2,
        schedule="step",
        start="solver",
        lmbda=3e-3,
        bits_per_weight=0.8,
        refresh_steps=2,
        codebook_bits=codebook_bits,
        cv=9,
        freeze=0.9,
    )
    quantizer = QuantizerConfig(weight_bits=8, activation_bits=8)
    fields = {"quantizer": quantizer, "gwk": gwk, "keep_float": ("conv1", "fc?"), "initial": str(whole[0] / "model.safetensors")}
    config = dataclasses.replace(CONFIG, float_epochs=0, epochs=0, hessian_epochs=0, **fields)
    figures = run(config, tmp_path, say=lambda line: None)
    name = "gwk" if epochs else "tune"
    assert figures["gwk accuracy" if epochs else "tuned accuracy"] > 0.6
    found = [r for r in lines(tmp_path) if r["phase"] == name]
    assert len(found) == (epochs or 12) and found[-1]["train_loss"] < found[0]["train_loss"]
    stored = {leaf.name: leaf for leaf in codec.inspect(tmp_path / "model.bq.safetensors").leaves}
    conv = [stored[f"network/conv{i}/kernel"] for i in (2, 3)]
    assert all(leaf.d == 9 and leaf.table_dtype == "uint8" for leaf in conv)
    codebook = codec.load(tmp_path / "model.bq.safetensors")["network"]["conv3"]["kernel"].codebook
    assert codebook.max() == 2 ** (codebook_bits or 8) - 1
    assert sum(8 * leaf.code_bytes for leaf in conv) / sum(leaf.size for leaf in conv) < 0.9
    assert run(config, tmp_path, say=lambda line: None) == figures
    if epochs:
        _scored_and_gone_on(config, tmp_path, figures["gwk accuracy"])


def _scored_and_gone_on(config, folder, accuracy):
    """The file of a run, scored, and as the start of another."""
    file = folder / "model.bq.safetensors"
    scored = score(config, file, folder)
    assert scored.accuracy == accuracy and scored.float_accuracy > accuracy
    assert scored.error > 0 and "test images" in str(scored)
    with pytest.raises(ValueError, match=r"leaf 'conv\d/kernel' .* by the config"):
        run(dataclasses.replace(config, gwk=_from(config.gwk, file, cv=3)), folder / "other", say=lambda line: None)
    # At rates of 0 with blocks frozen from the start, the network of the file comes back.
    on = dataclasses.replace(config, gwk=_from(config.gwk, file), learning_rate=0.0, quantizer_learning_rate=0.0)
    assert run(on, folder / "on", say=lambda line: None)["gwk accuracy"] == accuracy
    first, second = (read_quantized(path / "model.bq.safetensors").clustered for path in (folder, folder / "on"))
    for name in first:
        np.testing.assert_array_equal(first[name].indices, second[name].indices)
        np.testing.assert_array_equal(first[name].codebook, second[name].codebook)
    assert lines(folder / "on")[0]["train_loss"] < lines(folder)[0]["train_loss"]
    with pytest.raises(ValueError, match="give the config that the file was made by"):
        score(
            dataclasses.replace(config, model="mnist_small", dataset="digits28", keep_float=(), initial=None, distillation=0.0),
            file,
            folder,
        )


def _from(gwk, file, **fields):
    return dataclasses.replace(gwk, start="file", file=str(file), epochs=1, freeze=0.0, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": "solver", "schedule": "step"}, "needs a positive and finite lmbda"),
        ({"start": "solver", "lmbda": 1.0}, 'needs schedule "step"'),
        ({"lmbda": 1.0}, 'need start "solver"'),
        ({"start": "solver", "schedule": "step", "lmbda": 1.0, "rate": 0.1}, "one lmbda for all layers"),
        ({"start": "solver", "schedule": "step", "lmbda": 1.0, "bits_per_weight": 0.0}, "bits_per_weight must be positive"),
        ({"start": "solver", "schedule": "step", "lmbda": 1.0, "refresh_steps": 0}, "refresh_steps must be at least 1, got 0"),
        ({"start": "solver", "schedule": "step", "lmbda": 1.0, "codebook_bits": 9}, "codebook_bits must be from 1 to 8, got 9"),
        ({"refresh_steps": 2}, 'need start "solver"'),
        ({"codebook_bits": 6}, 'need start "solver"'),
        ({"start": "solver", "schedule": "step", "lmbda": 1.0, "epochs": 0}, "needs epochs"),
        ({"start": "file"}, "and the name of a file go together"),
        ({"start": "else"}, "kmeans, solver or file"),
    ],
)
def test_bad_starts(fields, message):
    with pytest.raises(ValueError, match=message):
        GWKPhase(**{"epochs": 1} | fields)


def test_a_folder_of_another_config_is_refused(whole):
    folder = whole[0]
    other = dataclasses.replace(CONFIG, seed=1, quantizer=dataclasses.replace(CONFIG.quantizer, delta=0.5))
    with pytest.raises(
        ValueError, match=r"another config: quantizer\.delta is 0\.001 there and 0\.5 now; seed is 0 there and 1 now"
    ):
        run(other, folder)


def test_a_folder_of_an_older_version_is_taken(tmp_path):
    checked_config(tmp_path, CONFIG)
    path, added = tmp_path / "config.json", ("test_examples", "freeze", "quantizer.delta")
    written = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in written.items() if key not in added}))
    checked_config(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"quantizer\.delta is 0\.001 there and 0\.5 now"):
        checked_config(tmp_path, dataclasses.replace(CONFIG, quantizer=dataclasses.replace(CONFIG.quantizer, delta=0.5)))
    with pytest.raises(ValueError, match="test_examples is None there and 5 now"):
        checked_config(tmp_path, dataclasses.replace(CONFIG, test_examples=5))
    none = {key: value for key, value in written.items() if not key.startswith("quantizer.")} | {"quantizer": None}
    path.write_text(json.dumps(none))
    with pytest.raises(ValueError, match="another config"):
        checked_config(tmp_path, CONFIG)


def test_a_full_disk_costs_a_checkpoint_and_no_more(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "accuracy")
    state = {"a": np.arange(3.0, dtype=np.float32), "layers": {0: np.int32(7)}}
    checkpoints.save(1, state, {"accuracy": 0.9})
    checkpoints.wait()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(checkpoints._checkpointer), "save_async", full)
        with pytest.warns(UserWarning, match=r"epoch 2 was not written: .*No space left.*the last whole one is of epoch 1"):
            checkpoints.save(2, state, {"accuracy": 0.8})
    epoch, restored = checkpoints.restore(state)
    assert epoch == 1
    np.testing.assert_array_equal(restored["a"], state["a"])
    assert restored["layers"][0] == 7

    class Late:
        def result(self):
            full()

    with monkeypatch.context() as patched:  # found by the thread in the background
        patched.setattr(type(checkpoints._checkpointer), "save_async", lambda *args, **kwargs: Late())
        checkpoints.save(2, state, {"accuracy": 0.8})
        with pytest.warns(UserWarning, match="epoch 2 was not written"):
            checkpoints.wait()
    for epoch in (3, 4):
        checkpoints.save(epoch, state, {"accuracy": 0.7})
    checkpoints.close()
    assert Checkpoints(tmp_path, "accuracy").epochs() == [1, 4]  # the best and the last
    assert Checkpoints(tmp_path, "accuracy").best() == 1


def test_the_command_line(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(SOURCE.format(config=CONFIG))
    arguments = ["--config", str(config), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):  # tyro's own exit
        main([*arguments, "--batch-size", "0"])
    assert "batch_size must be at least 1, got 0" in capsys.readouterr().err
    assert main([*arguments, "--batch-size", "1000"]) == 2
    assert "larger than the 897 training examples" in capsys.readouterr().err
    cifar = [*arguments, "--model", "resnet20", "--dataset", "cifar10"]
    assert main(cifar) == 2
    assert "--data-dir is missing" in capsys.readouterr().err
    assert main([*cifar, "--data-dir", str(tmp_path)]) == 2
    assert "download_and_prepare()" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none.py")]) == 2
    assert "no config file" in capsys.readouterr().err


def test_a_batch_smaller_than_the_devices(monkeypatch, tmp_path):
    class Mesh:
        size = 128

    monkeypatch.setattr("train.image.loop.Devices", lambda: Devices(Mesh()))
    with pytest.raises(ValueError, match="batch_size 64 must be a multiple of the 128 devices: take 128"):
        run(CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"float_epochs": 0, "epochs": 0, "distillation": 0.0}, "there must be epochs"),
        ({"quantizer": None}, "quantized epochs and GWK need a quantizer"),
        ({"gwk": GWKPhase(epochs=1), "epochs": 0, "quantizer": None}, "GWK need a quantizer"),
        ({"learning_rate": -1.0}, "learning_rate must be finite"),
        ({"distillation": 1.5}, "distillation is a share"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"float_epochs": 0}, "distillation needs a float network"),
        ({"dataset": "cifar10"}, "does not fit data set"),
        ({"hessian_epochs": -1}, "hessian_epochs must be at least 0"),
        (
            {"quantizer": QuantizerConfig(weight_bits=1, rounding="dsq")},
            "hessian_epochs=2 needs a quantizer of weights with rounding",
        ),
        ({"test_examples": 0}, "test_examples must be at least 1"),
        ({"cutmix": 1.5}, "cutmix is a probability from 0 to 1, got 1.5"),
        ({"statistics_examples": 63}, "statistics_examples must be 0 or at least a batch of 64, got 63"),
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        ({"teacher": "a", "teacher_weights": "b"}, "two networks"),
        ({"teacher_weights": "a", "distillation": 0.0}, "a teacher needs distillation"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
