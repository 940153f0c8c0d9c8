"""The training loop: epochs of gradient steps through a scheme, from checkpoint to checkpoint.

Images, speech, the digits of the demo and the methods that train on (:mod:`train.methods.retrain`) all train here. They differ in
their objective, their data, and the scheme that stands between the numbers of the optimiser and the weights of the network
(:mod:`train.methods.schemes`): float, quantized, clustered, with trained codebooks, soft or pruned.

A run that is killed and started again gives the numbers of one that was not: the data of an epoch follow from the epoch, every draw
of a step from the key and the step, and the rest is in the checkpoint of the last epoch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bqjax.core.progress import Progress
from train.checkpoint import Checkpoints
from train.log import MetricsLog
from train.methods.schemes import Scheme, Weights

__all__ = [
    "Data",
    "Folder",
    "Measures",
    "Network",
    "Objective",
    "TrainState",
    "Training",
    "compiled_step",
    "fit",
    "network_of",
    "start",
]


class Network(NamedTuple):
    """What an objective is computed from.

    Attributes:
      weights: of the scheme's leaves, as the network sees them.
      rest: all other parameters.
      statistics: what is not trained: running statistics of BatchNorm, and what quantizers are told.
    """

    weights: Weights
    rest: Any
    statistics: Any


class TrainState(NamedTuple):
    """What a step takes and gives.

    Attributes:
      params: ``{"scheme": ..., "rest": ...}``, the scheme's numbers and all other parameters.
      statistics: see :class:`Network`.
      optimizer: Optax's.
      step: int32, steps done in this phase.
      carried: what else the scheme carries from step to step: clusters, soft codebooks.
    """

    params: dict[str, Any]
    statistics: Any
    optimizer: Any
    step: Any
    carried: Any


Objective = Callable[[Network, Any, jax.Array, jax.Array, Any], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]
"""``objective(network, batch, key, progress, teacher) -> (loss, (statistics, values))``: the mean loss of a batch, its statistics
after it, and what is reported of the step. ``key`` is the step's, ``progress`` goes from 0 to 1 over the phase."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """One phase: what is minimised, through which scheme, by which optimiser, and for how long.

    Attributes:
      name: of its checkpoints and in its log.
      scheme: what the weights are while they are trained.
      objective: see :data:`Objective`.
      optimizer: of ``params`` of a :class:`TrainState`; the scheme may add to it.
      epochs: of the phase.
      steps: an epoch.
      key: of every draw.
      teacher: arrays that the objective is given, such as a network to learn from. An argument of the step and no constant in it,
        so that a compilation cache has the step of every seed.
    """

    name: str
    scheme: Scheme
    objective: Objective
    optimizer: optax.GradientTransformation
    epochs: int
    steps: int
    key: jax.Array
    teacher: Any = None

    @property
    def total(self) -> int:
        """Steps of the phase, at least 1."""
        return max(1, self.steps * self.epochs)

    @property
    def whole_optimizer(self) -> optax.GradientTransformation:
        """The optimiser with what the scheme adds."""
        return self.scheme.optimizer(self.optimizer, self.total)


class Data(NamedTuple):
    """What is trained on: ``steps`` batches an epoch, and ``batches(epoch)``, the same whenever it is asked for an epoch."""

    steps: int
    batches: Callable[[int], Iterable[Any]]


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


def start(training: Training, leaves: Any, rest: Any, statistics: Any, key: jax.Array) -> TrainState:
    """The state before the first step.

    Args:
      training: the phase.
      leaves: what the scheme takes, float weights or compressed leaves.
      rest: all other parameters.
      statistics: see :class:`Network`.
      key: of the scheme's start.

    Raises:
      ValueError: the scheme cannot start from these leaves.
    """
    numbers, carried = training.scheme.start(leaves, key)
    params = {"scheme": numbers, "rest": rest}
    return TrainState(params, statistics, training.whole_optimizer.init(params), jnp.int32(0), carried)


def network_of(scheme: Scheme, state: TrainState, progress: Any = 1.0) -> Network:
    """The network of a state, as the scheme has it seen."""
    return Network(scheme.seen(state.params["scheme"], state.carried, progress)[0], state.params["rest"], state.statistics)


def _gradients(training: Training, state: TrainState, batch: Any, key: jax.Array, teacher: Any) -> tuple[Any, Any]:
    """``((loss, (carried, statistics, values)), gradients)`` of a batch."""
    progress = state.step / training.total

    def loss(params: Any) -> tuple[jax.Array, Any]:
        weights, carried = training.scheme.seen(params["scheme"], state.carried, progress)
        network = Network(weights, params["rest"], state.statistics)
        value, (statistics, values) = training.objective(network, batch, jax.random.fold_in(key, state.step), progress, teacher)
        return value, (carried, statistics, values)

    return jax.value_and_grad(loss, has_aux=True)(state.params)


def compiled_step(training: Training) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """``step(state, batch, key, teacher) -> (state, values)``, compiled; it takes over the buffers of the state.

    The key is its data (:func:`jax.random.key_data`), which any number of processes can share.
    """
    scheme, optimizer = training.scheme, training.whole_optimizer

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Any, key: jax.Array, teacher: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        (_, (carried, statistics, values)), grads = _gradients(training, state, batch, jax.random.wrap_key_data(key), teacher)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        carried = scheme.follow(params["scheme"], carried, grads["scheme"], state.step / training.total)
        return TrainState(params, statistics, moments, state.step + 1, carried), values

    return step


def _reconstruction(training: Training) -> Callable[..., TrainState]:
    """``reconstruct(state, batch, key, teacher, epoch) -> state``: the scheme's weights replaced, by the gradients of one batch."""

    @jax.jit
    def reconstruct(state: TrainState, batch: Any, key: jax.Array, teacher: Any, epoch: jax.Array) -> TrainState:
        whole = jax.random.wrap_key_data(key)
        _, grads = _gradients(training, state, batch, whole, teacher)
        draw = jax.random.fold_in(whole, epoch)
        numbers, carried = training.scheme.reconstructed(state.params["scheme"], state.carried, grads["scheme"], draw)
        return state._replace(params=state.params | {"scheme": numbers}, carried=carried)

    return reconstruct


class _Compiled(NamedTuple):
    """A phase's functions of state and batch, with key and teacher laid out over devices."""

    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    reconstruct: Callable[[TrainState, Any, int], TrainState]


def _compiled(training: Training, place: Callable[[Any], Any]) -> _Compiled:
    step, reconstruct = compiled_step(training), _reconstruction(training)
    key, teacher = place(jax.random.key_data(training.key)), place(training.teacher)
    return _Compiled(
        lambda state, batch: step(state, batch, key, teacher),
        lambda state, batch, epoch: reconstruct(state, batch, key, teacher, epoch) if training.scheme.by_epoch else state,
    )


def copied(tree: Any) -> Any:
    """Arrays on the default device that share no buffer with ``tree``, as steps take over those of a state."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def fit(
    training: Training,
    state: TrainState,
    data: Data,
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
      state: from :func:`start`; its arrays stay as they are.
      data: what is trained on.
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
    run, history = _compiled(training, place), []
    with contextlib.ExitStack() as stack:
        # What is being written is waited for even where training ends by an exception: a next run may not meet it.
        kept = (
            None
            if folder is None
            else stack.enter_context(contextlib.closing(Checkpoints(folder.path / training.name, folder.metric)))
        )
        done, state = (None if kept is None else kept.restore(state)) or (0, state)
        log = None if folder is None else stack.enter_context(contextlib.closing(MetricsLog(folder.path, training.name, done)))
        state = place(state)
        for epoch in range(done, training.epochs):
            began = time.perf_counter()
            state, values, batch = _epoch(run, training, state, data, epoch, measures, progress)
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


def _epoch(
    run: _Compiled,
    training: Training,
    state: TrainState,
    data: Data,
    epoch: int,
    measures: Measures,
    progress: Progress | None,
) -> tuple[TrainState, list[dict[str, jax.Array]], Any]:
    """The state after the steps of an epoch and what the scheme does at its end, the steps' values, and the last batch."""
    values: list[dict[str, jax.Array]] = []
    for batch in data.batches(epoch):
        state, of_step = run.step(state, batch)
        values.append(of_step)
        if progress is not None:
            # A step's numbers of some time ago: those of the last would have to be waited for.
            loss = measures.summary(_stacked(values[-3:][:1]))["train_loss"]
            progress(epoch * data.steps + len(values), training.total, f"{training.name}, loss {loss:.3f}")
    return run.reconstruct(state, batch, epoch), values, batch


def _stacked(values: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    return {name: np.array([step[name] for step in values]) for name in values[0]}


def _check_finite(name: str, epoch: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(f"{name}: training diverged in epoch {epoch + 1}, its loss is {loss}: take a smaller learning_rate")
