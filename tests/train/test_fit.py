"""The training loop on a linear network: killed and started again, diverging, with and without a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.checkpoint import Checkpoints
from train.fit import Folder, Measures, fit
from train.objective import adam_by_kind
from train.schemes import Scheme
from train.step import Training, network_of, start

STEPS, KEY = 3, jax.random.key(7)
TRUE = np.float32([[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]])


@dataclass(frozen=True)
class Nudged(Scheme):
    """Everything that a scheme may do: it carries a mean, sees progress, and replaces weights after each epoch by a draw."""

    @property
    def by_epoch(self):
        return True

    def start(self, tree, key):
        return {"weights": tree}, jax.tree.map(jnp.zeros_like, tree)

    def seen(self, numbers, state, progress):
        return jax.tree.map(lambda w, mean: w + 0.01 * progress * mean, numbers["weights"], state), state

    def follow(self, numbers, state, grads, progress):
        return jax.tree.map(lambda mean, w, g: 0.9 * mean + 0.1 * w + 0.01 * g, state, numbers["weights"], grads["weights"])

    def replaced(self, numbers, state, grads, key):
        moved = lambda w: w + 0.01 * jax.random.normal(key, w.shape)  # noqa: E731
        return {"weights": jax.tree.map(moved, numbers["weights"])}, state


def objective(network, batch, key, progress, teacher):
    noise = 0.1 * jax.random.normal(key, batch.shape)
    error = (batch + noise) @ network.weights["w"] + network.rest["b"][None] - batch @ teacher
    loss = jnp.square(error).mean()
    return loss, ({"mean": 0.9 * network.statistics["mean"] + 0.1 * batch.mean(0)}, {"loss": loss})


def batches(epoch):
    rng = np.random.default_rng((0, epoch))
    return (rng.normal(size=(16, 3)).astype(np.float32) for _ in range(STEPS))


MEASURES = Measures(
    lambda values: {"train_loss": float(values["loss"].mean())},
    lambda state: {"error": float(jnp.abs(network_of(Nudged(), state).weights["w"] - TRUE).max())},
)
TRAINING = Training(
    name="nudged",
    scheme=Nudged(),
    objective=objective,
    optimizer=adam_by_kind(
        lambda params: {"scheme": {kind: kind for kind in params["scheme"]}, "rest": "weights"},
        rate=0.5,
        quantizer_rate=0.0,
        decay=0.0,
        total=4 * STEPS,
    ),
    epochs=4,
    steps=STEPS,
    key=KEY,
    teacher=TRUE,
)
FIRST = start(TRAINING, {"w": jnp.zeros((3, 2))}, {"b": jnp.zeros(2)}, {"mean": jnp.zeros(3)}, KEY)


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder, steps = tmp_path_factory.mktemp("whole"), []
    state, history = fit(TRAINING, FIRST, batches, MEASURES, folder=Folder(folder, "-error"), progress=lambda *of: steps.append(of))
    return folder, state, history, steps


def test_it_learns_and_says_so(whole):
    folder, _, history, steps = whole
    assert history[-1]["error"] < history[0]["error"] and history[-1]["train_loss"] < history[0]["train_loss"]
    assert [of[:2] for of in steps] == [(i, 12) for i in range(1, 13)]
    assert steps[-1][2].startswith("nudged, loss ")
    assert [record["train_loss"] for record in lines(folder)] == [figures["train_loss"] for figures in history]
    best = min(range(4), key=lambda i: history[i]["error"]) + 1
    with_best = Checkpoints(folder / "nudged", "-error")
    assert with_best.best() == best and with_best.epochs() == sorted({best, 4})


def test_killed_and_started_again_the_numbers_are_the_same(whole, tmp_path):
    def kill(step, total, message):
        if step == 2 * STEPS + 2:  # within the third epoch
            raise KeyboardInterrupt

    folder = Folder(tmp_path, "-error")
    with pytest.raises(KeyboardInterrupt):
        fit(TRAINING, FIRST, batches, MEASURES, folder=folder, progress=kill)
    assert len(lines(tmp_path)) == 2
    state, history = fit(TRAINING, FIRST, batches, MEASURES, folder=folder)
    assert len(history) == 2  # the epochs that were left
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    assert lines(tmp_path) == lines(whole[0])
    again, history = fit(TRAINING, FIRST, batches, MEASURES, folder=folder)
    assert history == []
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_without_a_folder_and_with_more_after_an_epoch(whole):
    def after_epoch(state, batch, epoch):
        return state, {"seen": float(batch.shape[0])}, f"after {epoch}"

    said = []
    state, history = fit(TRAINING, FIRST, batches, MEASURES, after_epoch=after_epoch, say=said.append)
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    assert [figures["seen"] for figures in history] == [16] * 4
    assert said[:2] == ["after 0", f"1: loss {history[0]['train_loss']:.4f}"]
    np.testing.assert_array_equal(FIRST.params["scheme"]["weights"]["w"], 0)  # what it started from is still there


def test_what_was_written_is_whole_when_training_fails(tmp_path):
    """A loss that is not finite ends training, and so does an error of the caller: checkpoints of epochs before stay."""
    growing = replace(TRAINING, name="growing", objective=lambda *of: diverging(*of))
    with pytest.raises(ValueError, match="growing: training diverged in epoch 3, its loss is nan: take a smaller learning_rate"):
        fit(growing, FIRST, batches, MEASURES, folder=Folder(tmp_path, "-error"))
    assert Checkpoints(tmp_path / "growing", "-error").epochs()[-1] == 2


def diverging(network, batch, key, progress, teacher):
    loss, rest = objective(network, batch, key, progress, teacher)
    loss = jnp.where(progress < 0.5, loss, jnp.nan)
    return loss, (rest[0], {"loss": loss})


def test_checkpoints_of_another_network(whole):
    smaller = start(TRAINING, {"w": jnp.zeros((2, 2))}, {"b": jnp.zeros(2)}, {"mean": jnp.zeros(3)}, KEY)
    with pytest.raises(ValueError, match=r"has shape \(3, 2\), the network \(2, 2\)"):
        fit(TRAINING, smaller, batches, MEASURES, folder=Folder(whole[0], "-error"))
    other = start(TRAINING, {"v": jnp.zeros((3, 2))}, {"b": jnp.zeros(2)}, {"mean": jnp.zeros(3)}, KEY)
    with pytest.raises(ValueError, match="the checkpoint of epoch 4 does not fit this training, or is of another version"):
        fit(TRAINING, other, batches, MEASURES, folder=Folder(whole[0], "-error"))


@pytest.mark.parametrize("frozen", ["scheme", "rest"])
def test_what_is_frozen_does_not_move(frozen):
    labels = {"scheme": {"weights": "weights"}, "rest": {"b": "weights"}}
    labels[frozen] = jax.tree.map(lambda _: "frozen", labels[frozen])
    optimizer = adam_by_kind(labels, rate=0.1, quantizer_rate=0.0, decay=0.1, total=4)
    params = {"scheme": {"weights": {"w": jnp.ones((3, 2))}}, "rest": {"b": jnp.ones(2)}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for name, update in updates.items():
        assert all(bool((leaf == 0).all()) == (name == frozen) for leaf in jax.tree.leaves(update))
