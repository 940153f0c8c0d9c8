"""Weights from other runs, leaves that do not train, pruning in training; a pipeline of all of it on the digits."""

from __future__ import annotations

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax import codec
from bqjax.adapters.safetensors import read_weights, write_weights
from bqjax.core.leaves import decode
from bqjax.methods.base import Uncompressed
from bqjax.methods.baselines.methods import PTQ, DeepCompression
from bqjax.methods.baselines.ptq import PTQConfig
from bqjax.models.digits import DigitsConv
from train.image.config import TrainConfig
from train.image.problems import float_network, teacher_network
from train.image.transfer import (
    Pruning,
    frozen_leaves,
    load_network,
    pruned_leaves,
    save_network,
    with_frozen_statistics,
)
from train.main import main
from train.pipeline.run import PipelineConfig, Stage, run_pipeline, stage_config

NETWORK = {"conv": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 4))}}


class Normed(nnx.Module):
    """A body with BatchNorm, and a head."""

    def __init__(self, classes: int, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.body = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.body(x))))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    model = Normed(2)
    model.norm.mean[...] = jnp.arange(4.0)
    path = tmp_path_factory.mktemp("stored") / "model.safetensors"
    save_network(path, model)
    return model, path


def test_a_network_comes_back_from_its_file(stored):
    model, path = stored
    assert sorted(read_weights(path)) == sorted(
        ["body/kernel", "body/bias", "norm/scale", "norm/bias", "norm/mean", "norm/var", "head/kernel", "head/bias"]
    )
    again = load_network(Normed(2, seed=1), path)
    np.testing.assert_array_equal(again.head.kernel[...], model.head.kernel[...])
    np.testing.assert_array_equal(again.norm.mean[...], np.arange(4))


def test_a_new_head_is_drawn_anew(stored):
    model, path = stored
    fresh = Normed(5, seed=1)
    other = load_network(fresh, path, ["head/*"])
    np.testing.assert_array_equal(other.body.kernel[...], model.body.kernel[...])
    np.testing.assert_array_equal(other.head.kernel[...], fresh.head.kernel[...])


def test_files_of_other_networks(stored, tmp_path):
    _, path = stored
    with pytest.raises(ValueError, match=r"'head/bias' of shape \(5,\), .* has one of shape \(2,\).*anew='head/bias'"):
        load_network(Normed(5), path)
    with pytest.raises(ValueError, match=r"anew: pattern 'heads/\*' matches no leaf; the leaves are "):
        load_network(Normed(5), path, ["heads/*"])
    weights = read_weights(path)
    write_weights(tmp_path / "more.safetensors", weights | {"tail/kernel": np.ones(1, np.float32)})
    with pytest.raises(ValueError, match="has a tensor 'tail/kernel', which the network does not have"):
        load_network(Normed(2), tmp_path / "more.safetensors")
    write_weights(tmp_path / "less.safetensors", {name: w for name, w in weights.items() if name != "norm/var"})
    with pytest.raises(ValueError, match=r"'norm/var' .* has no such tensor"):
        load_network(Normed(2), tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match="no file"):
        load_network(Normed(2), tmp_path / "none.safetensors")


def test_frozen_leaves():
    assert frozen_leaves(NETWORK, ["conv*"]) == {"conv/kernel", "conv/bias"}
    with pytest.raises(ValueError, match=r"freeze: pattern 'body/\*' matches no leaf; the leaves are conv/bias, conv/kernel"):
        frozen_leaves(NETWORK, ["conv*", "body/*"])
    with pytest.raises(ValueError, match="nothing is left to train"):
        frozen_leaves(NETWORK, ["*"])


def test_frozen_batch_norm_keeps_its_statistics(stored):
    model, _ = stored
    network = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    training = nnx.view(model, use_running_average=False)
    assert with_frozen_statistics(training, network, ()) is training
    half = with_frozen_statistics(training, network, ["norm/scale"])  # its bias trains: statistics of the batch
    whole = with_frozen_statistics(training, network, ["body/*", "norm/*"])
    assert not half.norm.use_running_average
    assert whole.norm.use_running_average
    x = jax.random.normal(jax.random.key(0), (5, 3))
    np.testing.assert_array_equal(whole(x), nnx.view(model, use_running_average=True)(x))
    np.testing.assert_array_equal(whole.norm.mean[...], np.arange(4))


def test_pruning_leaves_what_is_frozen_alone():
    assert pruned_leaves(NETWORK, Pruning()) == ("conv/kernel", "head/kernel")
    assert pruned_leaves(NETWORK, Pruning(), ["conv/*"]) == ("head/kernel",)
    with pytest.raises(ValueError, match=r"pruning\.leaves: pattern 'conv/\*' matches no leaf; the leaves are head/kernel"):
        pruned_leaves(NETWORK, Pruning(leaves=("conv/*",)), ["conv*"])


def test_the_schedule_is_in_parts_of_the_phase():
    schedule = Pruning(sparsity=0.8, begin=0.25, end=0.75).schedule(100)
    assert (schedule.begin, schedule.end, schedule.final) == (25, 75, 0.8)
    assert Pruning(sparsity=0.8, begin=0.25, end=0.75).schedule(1).end == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"begin": 0.5, "end": 0.5}, "begin before end, got 0.5 and 0.5"),
        ({"end": 1.1}, "parts of the phase"),
        ({"sparsity": 1.0}, r"final must be in \[0, 1\), got 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"leaves": ()}, "pruning needs patterns"),
    ],
)
def test_bad_pruning(change, message):
    with pytest.raises(ValueError, match=message):
        Pruning(**change)


TRAIN = TrainConfig(model="digits", dataset="digits", float_epochs=2, batch_size=64, learning_rate=3e-3)
FLOAT = Uncompressed()
PIPELINE = PipelineConfig(
    stages=(
        Stage(name="first", train=TRAIN, methods=(PTQ(label="int8"),)),
        Stage(
            name="Second, pruned",
            start="first",
            teacher="first",
            train=dataclasses.replace(
                TRAIN,
                anew=("fc2/*",),
                freeze=("conv*",),
                distillation=0.5,
                pruning=Pruning(sparsity=0.75, leaves=("fc1/kernel",), every=3),
            ),
            methods=(FLOAT, PTQ(config=PTQConfig(bits=8), label="int8")),
        ),
    ),
    seeds=(3,),
    train_examples=256,
)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """A stage that goes on compiles the same functions again."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def done(tmp_path_factory, compiled_once):
    """The pipeline, interrupted in the second epoch of its second stage, and gone on with."""
    folder = tmp_path_factory.mktemp("pipeline")
    said: list[str] = []

    def stop(step, total, message):
        if any(line.startswith("seed 3, Second") for line in said) and step > total // 2:
            until = time.monotonic() + 60  # the first epoch's checkpoint is being written by a thread
            while time.monotonic() < until and not (folder / "seed3" / "second-pruned" / "float" / "1").is_dir():
                time.sleep(0.02)
            raise Interrupted

    with pytest.raises(Interrupted):
        run_pipeline(PIPELINE, folder, progress=stop, say=said.append)
    before = len(said)
    figures = run_pipeline(PIPELINE, folder, say=said.append)
    return folder, figures, said[before:]


def test_a_pipeline_goes_on_where_it_was(done):
    folder, figures, said = done
    assert said[0] == "seed 3, Second, pruned"
    assert [line.split(":")[0] for line in said[1:3]] == ["float 2/2", "seed 3, Second, pruned"]
    lines = [json.loads(line) for line in (folder / "seed3" / "second-pruned" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert list(figures) == ["first, int8", "Second, pruned, float32", "Second, pruned, int8"]
    assert min(figures.values()) > 0.15


def test_what_is_frozen_stays_and_what_is_pruned_is_zero(done):
    folder, *_ = done
    first, second = (read_weights(folder / "seed3" / stage / "model.safetensors") for stage in ("first", "second-pruned"))
    for name, weights in first.items():
        assert np.array_equal(weights, second[name]) == name.startswith("conv"), name
    assert int((second["fc1/kernel"] == 0).sum()) == round(0.75 * second["fc1/kernel"].size)
    (file,) = (folder / "seed3" / "second-pruned" / "rows").glob("int8-*.safetensors")
    kernel = decode(codec.load(file))["fc1"]["kernel"]
    assert bool((kernel[second["fc1/kernel"] == 0] == 0).all())


def test_the_ledger(done):
    folder, figures, _ = done
    rows = json.loads((folder / "ledger.json").read_text())
    assert [(row["seed"], row["stage"], row["method"]) for row in rows] == [
        (3, "first", "int8"),
        (3, "Second, pruned", "float32"),
        (3, "Second, pruned", "int8"),
    ]
    assert len({row["before"] for row in rows}) == 1  # the first stage's float network, for all of them
    assert [row["after"] for row in rows] == list(figures.values())
    assert rows[0]["float_bytes"] == (folder / "seed3" / "first" / "model.safetensors").stat().st_size
    assert rows[1]["file_bytes"] < 0.75 * rows[0]["float_bytes"] and rows[2]["ratio"] > 4
    table = (folder / "ledger.md").read_text()
    assert "| Second, pruned, int8 |" in table and "Seed 3." in table and "| difference, each seed |" in table
    assert (folder / "ledger.csv").read_text().count("\n") == 4
    assert "Second, pruned" in (folder / "pareto.svg").read_text() and (folder / "pareto.png").stat().st_size > 10_000


def test_a_finished_pipeline_is_read_and_not_run(done):
    folder, figures, _ = done
    said = []
    more = dataclasses.replace(PIPELINE.stages[1], methods=(FLOAT, DeepCompression(label="broken", rules=[])))
    config = dataclasses.replace(PIPELINE, stages=(PIPELINE.stages[0], more))
    assert run_pipeline(config, folder, say=said.append)["first, int8"] == figures["first, int8"]
    assert [line.split(":")[0] for line in said[:-1]] == ["seed 3, Second, pruned, broken"]  # the new row, and the ledger
    other = dataclasses.replace(PIPELINE, train_examples=128)
    with pytest.raises(ValueError, match="another config: train_examples is 256 there and 128 now"):
        run_pipeline(other, folder, say=said.append)


def change(i, **fields):
    stages = list(PIPELINE.stages)
    stages[i] = dataclasses.replace(stages[i], **fields)
    return stages


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        ({"stages": ()}, "needs stages and seeds"),
        ({"seeds": ()}, "needs stages and seeds"),
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"compare_with": "third"}, "compare_with names 'third', the stages are"),
        ({"stages": change(1, name="First")}, "'First' needs a name of letters and digits that no other"),
        ({"stages": change(0, teacher="Second, pruned")}, "teacher names 'Second, pruned', the stages before it are"),
        ({"stages": change(0, train=dataclasses.replace(TRAIN, initial="x"))}, "start and teacher of the stage say"),
        ({"stages": change(1, train=TrainConfig(model="mnist_small", dataset="digits28", float_epochs=1))}, "need one data set"),
        ({"stages": change(1, methods=(FLOAT, FLOAT))}, "two methods of one label"),
    ],
)
def test_bad_pipelines(change_of, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PIPELINE, **change_of)


def test_what_the_pipeline_sets_of_a_training(tmp_path):
    own = stage_config(PIPELINE, PIPELINE.stages[1], 3, tmp_path)
    file = str(tmp_path / "first" / "model.safetensors")
    assert (own.initial, own.teacher, own.teacher_model, own.seed, own.train_examples) == (file, file, "digits", 3, 256)


def test_networks_of_a_config(done):
    folder, *_ = done
    path = folder / "seed3" / "first" / "model.safetensors"
    config = dataclasses.replace(TRAIN, initial=str(path), anew=("fc2/*",), freeze=("conv*",))
    model = float_network(config, None)
    np.testing.assert_array_equal(model.conv1.kernel[...], read_weights(path)["conv1/kernel"])
    np.testing.assert_array_equal(model.fc2.kernel[...], DigitsConv(rngs=nnx.Rngs(0)).fc2.kernel[...])
    teacher = teacher_network(dataclasses.replace(TRAIN, distillation=0.5, teacher=str(path)))
    np.testing.assert_array_equal(teacher.fc2.kernel[...], read_weights(path)["fc2/kernel"])
    with pytest.raises(ValueError, match="anew says what is not taken from the file of initial"):
        float_network(dataclasses.replace(TRAIN, anew=("fc2/*",)), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "x"}, "a teacher needs distillation"),
        ({"teacher_model": "mnist_5x5", "distillation": 0.5}, "name the file, too"),
        ({"weights": "x", "initial": "x"}, "two starts"),
        ({"pruning": Pruning(), "float_epochs": 0, "weights": "x", "epochs": 1}, "quantized|pruning is for the float phase"),
        ({"dataset": "digits28"}, "model 'digits' does not fit data set 'digits28'"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRAIN, **fields)


def test_the_command_line(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from train.image.config import TrainConfig\nfrom train.pipeline.run import PipelineConfig, Stage\n"
        'train = TrainConfig(model="mnist_small", dataset="fashion_mnist", float_epochs=1)\n'
        'config = PipelineConfig(stages=(Stage(name="only", train=train),))\n'
    )
    assert main(["--config", str(config), "--data-dir", str(tmp_path), "--out", str(tmp_path / "run"), "--seeds", "5"]) == 2
    said = capsys.readouterr().err
    assert "seed 5, only" in said and "apt install dataset-fashion-mnist" in said
    assert main(["--config", str(config), "--distributed"]) == 2
    assert "pipelines are trained by one process" in capsys.readouterr().err
