"""The training loop: epochs of gradient steps, with what is done at their ends, from checkpoint to checkpoint.

Images, speech, the digits of the demo and the methods that train on (:mod:`train.methods.retrain`) all train here. They differ in
their objective, their data, and the scheme that stands between the numbers of the optimiser and the weights of the network
(:mod:`train.schemes`): float, quantized, clustered, with trained codebooks, soft or pruned.

A run that is killed and started again gives the numbers of one that was not: the data of an epoch follow from the epoch, every draw
of a step from the key and the step, and the rest is in the checkpoint of the last epoch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.progress import Progress
from train.checkpoint import Checkpoints
from train.log import MetricsLog
from train.step import Training, TrainState, compiled_replacement, compiled_step

__all__ = ["AfterEpoch", "Batches", "Folder", "Measures", "copied", "fit"]


Batches = Callable[[int], Iterable[Any]]
"""``batches(epoch)``: what an epoch is trained on, the same whenever it is asked for; as many batches as the training has steps."""


class Folder(NamedTuple):
    """Where a run keeps checkpoints and log, and the metric of :class:`train.checkpoint.Checkpoints`."""

    path: Path
    metric: str


class Measures(NamedTuple):
    """What is said of an epoch.

    Attributes:
      summary: figures of training from the steps' values, each ``[steps]``; ``"train_loss"`` must be among them.
      evaluate: figures of a state on data that are not trained on.
      line: ``line(epoch, figures)`` for :func:`fit`'s ``say``, the epoch counted from 1.
    """

    summary: Callable[[dict[str, np.ndarray]], dict[str, float]]
    evaluate: Callable[[TrainState], dict[str, float]] = lambda state: {}
    line: Callable[[int, dict[str, float]], str] = lambda epoch, figures: f"{epoch}: loss {figures['train_loss']:.4f}"


AfterEpoch = Callable[[TrainState, Any, int], tuple[TrainState, dict[str, float], str]]
"""``after_epoch(state, batch, epoch) -> (state, figures, line)``, from the epoch's last batch; an empty line is not said."""


def copied(tree: Any) -> Any:
    """Arrays on the default device that share no buffer with ``tree``, as steps take over those of a state."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def fit(
    training: Training,
    state: TrainState,
    batches: Batches,
    measures: Measures,
    *,
    folder: Folder | None = None,
    after_epoch: AfterEpoch | None = None,
    place: Callable[[Any], Any] = copied,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Trains for a phase, or goes on after the last checkpoint in the folder.

    Args:
      training: the phase.
      state: from :func:`train.step.start`; its arrays stay as they are.
      batches: of each epoch, counted from 0.
      measures: what is said of an epoch.
      folder: of checkpoints and log; None keeps neither.
      after_epoch: what is done to the state after an epoch, beside what the scheme does.
      place: lays arrays out over devices.
      progress: called as ``progress(step, total, message)`` after each step.
      say: called with a line after each epoch.

    Returns:
      ``(state, epochs)``: the state after the last epoch, and the figures of each epoch that this call trained.

    Raises:
      ValueError: the loss of an epoch is not finite; the folder holds checkpoints of another network.
    """
    run, history = _Compiled(training, place), []
    with contextlib.ExitStack() as stack:
        kept = log = None
        done = 0
        if folder is not None:
            # What is being written is waited for even where training ends by an exception: a next run may not meet it.
            kept = stack.enter_context(contextlib.closing(Checkpoints(folder.path / training.name, folder.metric)))
            done, state = kept.restore(state) or (0, state)
            log = stack.enter_context(contextlib.closing(MetricsLog(folder.path, training.name, done)))
        state = place(state)
        for epoch in range(done, training.epochs):
            began = time.perf_counter()
            state, values, batch = _epoch(run, state, batches, epoch, measures, progress)
            state, found, line = (state, {}, "") if after_epoch is None else after_epoch(state, batch, epoch)
            if line:
                say(line)
            trained = measures.summary(_stacked(values))
            seconds = {"seconds": time.perf_counter() - began}
            _check_finite(training.name, epoch, trained["train_loss"])
            history.append(trained | measures.evaluate(state) | found | seconds)
            if log is not None:
                log.write(epoch + 1, history[-1])
            say(measures.line(epoch + 1, history[-1]))
            if kept is not None:
                kept.save(epoch + 1, state, history[-1])
    return state, history


class _Compiled:
    """A phase's functions of state and batch, with key and teacher laid out over devices."""

    def __init__(self, training: Training, place: Callable[[Any], Any]):
        self.training = training
        self._step, self._replace = compiled_step(training), compiled_replacement(training)
        self._key, self._teacher = place(jax.random.key_data(training.key)), place(training.teacher)

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        return self._step(state, batch, self._key, self._teacher)

    def ended(self, state: TrainState, batch: Any, epoch: int) -> TrainState:
        """After the last step of an epoch."""
        return self._replace(state, batch, self._key, self._teacher, epoch) if self.training.scheme.by_epoch else state


def _epoch(
    run: _Compiled, state: TrainState, batches: Batches, epoch: int, measures: Measures, progress: Progress | None
) -> tuple[TrainState, list[dict[str, jax.Array]], Any]:
    """The state after the steps of an epoch and what the scheme does at its end, the steps' values, and the last batch."""
    training, values = run.training, []
    for batch in batches(epoch):
        state, of_step = run.step(state, batch)
        values.append(of_step)
        if progress is not None:
            # A step's numbers of some time ago: those of the last would have to be waited for.
            loss = measures.summary(_stacked(values[-3:][:1]))["train_loss"]
            progress(epoch * training.steps + len(values), training.total, f"{training.name}, loss {loss:.3f}")
    return run.ended(state, batch, epoch), values, batch


def _stacked(values: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    return {name: np.array([step[name] for step in values]) for name in values[0]}


def _check_finite(name: str, epoch: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(f"{name}: training diverged in epoch {epoch + 1}, its loss is {loss}: take a smaller learning_rate")
