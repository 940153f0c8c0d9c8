"""One gradient step of training, a pure function of a state: an objective through a scheme, by an optimiser.

A :class:`Training` says what a phase minimises; :func:`start` gives its first state, :func:`compiled_step` its step, and
:mod:`train.fit` runs it over epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.schemes import Scheme, Weights

__all__ = [
    "Network",
    "Objective",
    "TrainState",
    "Training",
    "compiled_replacement",
    "compiled_step",
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


def compiled_replacement(training: Training) -> Callable[..., TrainState]:
    """``replace(state, batch, key, teacher, epoch) -> state``, compiled: the scheme's weights replaced, as schemes by epoch do."""

    @jax.jit
    def replace(state: TrainState, batch: Any, key: jax.Array, teacher: Any, epoch: jax.Array) -> TrainState:
        whole = jax.random.wrap_key_data(key)
        _, grads = _gradients(training, state, batch, whole, teacher)
        draw = jax.random.fold_in(whole, epoch)
        numbers, carried = training.scheme.replaced(state.params["scheme"], state.carried, grads["scheme"], draw)
        return state._replace(params=state.params | {"scheme": numbers}, carried=carried)

    return replace
