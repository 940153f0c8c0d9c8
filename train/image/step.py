"""What one step of training is: the loss, its gradients, the optimiser, and clustering in between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bqjax.adapters.flax.hessian import hessian_deltas
from bqjax.adapters.flax.quantized import QuantizerParam, quantized_layers, set_quantizers
from bqjax.kmeans.codebooks import codebooks
from bqjax.methods.gwk.training import GWKState
from train.data.augment import augment
from train.image import clustering, transfer
from train.image.config import GWKPhase, TrainConfig
from train.image.problems import Problem
from train.objective import adam, mean_loss

__all__ = ["Functions", "PhaseKind", "TrainState", "functions", "phase_kind"]

PhaseKind = Literal["plain", "clustered after epochs", "clustered in steps", "codebooks"]
_FILTERS = (QuantizerParam, nnx.Param, nnx.RngState, ...)


class TrainState(NamedTuple):
    """What a step takes and gives.

    Attributes:
      params: ``{"network": ..., "quantizers": ...}``, nested dicts of arrays, and where codebooks are trained ``"codebooks"``,
        as :func:`bqjax.kmeans.codebooks.codebooks` names them.
      rest: running statistics of BatchNorm, and what quantizers are told.
      optimizer: Optax's.
      step: int32, steps done in this phase.
      clusters: state of GWK; None in other phases.
    """

    params: dict[str, Any]
    rest: Any
    optimizer: Any
    step: Any
    clusters: Any = None


class Functions(NamedTuple):
    """What a phase is made of.

    Attributes:
      start: the state at its start.
      step: ``(state, batch) -> (state, {"loss": ..., "accuracy": ...})``; takes over the buffers of the state.
      reconstructed: ``(state, batch, epoch) -> state``, weights replaced by their reconstruction.
      measured: ``(state, batch, epoch) -> (state, delta, reason)``, EWGS's gradient scale of each layer from the Hessian on the
        batch; the last two by name of layer, see :func:`bqjax.quantizers.hessian_delta`.
      evaluate: ``(state, batch, mask) -> {"loss": ..., "accuracy": ...}``, sums over the examples of the mask.
      merge: the model of a state, in training mode.
    """

    start: TrainState
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    reconstructed: Callable[[TrainState, Any, int], TrainState]
    measured: Callable[[TrainState, Any, int], tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]]
    evaluate: Callable[[TrainState, Any, jax.Array], dict[str, jax.Array]]
    merge: Callable[[TrainState], Any]


def phase_kind(config: TrainConfig, name: str) -> PhaseKind:
    """How the phase ``name`` treats clusters."""
    if config.gwk is None or name not in ("gwk", "tune"):
        return "plain"
    if name == "tune":
        return "codebooks"
    return "clustered in steps" if config.gwk.schedule == "step" else "clustered after epochs"


def _optimizer(config: TrainConfig, kind: PhaseKind, total: int, network: Any) -> optax.GradientTransformation:
    rate = config.learning_rate
    rates = {}
    if kind == "codebooks" and config.gwk is not None:
        rate = config.gwk.tune_learning_rate
        rates["codebooks"] = adam(rate, 0.0, total)
    rates |= {
        "network": adam(rate, config.weight_decay, total),
        "quantizers": adam(config.quantizer_learning_rate, 0.0, total),
    }
    labels: dict[str, Any] = {name: name for name in rates}
    if config.freeze:
        labels["network"], rates["frozen"] = transfer.freezing(network, config.freeze), optax.set_to_zero()
    optimizer = optax.partition(rates, labels)
    if config.pruning is not None:
        return transfer.pruned_optimizer(optimizer, config.pruning, network, config.freeze, total)
    return optimizer


def functions(
    config: TrainConfig, kind: PhaseKind, model: Any, clusters: GWKState | None, teacher: Any, data: Problem, total: int
) -> Functions:
    """The functions of a phase of ``total`` steps.

    Args:
      config: of the run.
      kind: of the phase.
      model: what it starts from.
      clusters: where the phase before ended, for a phase that trains codebooks.
      teacher: the float network to learn from, or None.
      data: of the config.
      total: steps of the phase.
    """
    modes = {
        training: nnx.view(model, use_running_average=not training, deterministic=not training, raise_if_not_found=False)
        for training in (True, False)
    }
    _, *states = nnx.split(modes[True], *_FILTERS)
    quantizers, network, rng, rest = (nnx.to_pure_dict(s) for s in states)
    modes[True] = transfer.with_frozen_statistics(modes[True], network, config.freeze)
    graphs = {training: nnx.split(modes[training], *_FILTERS)[0] for training in modes}
    rounds = bool(quantized_layers(model))
    params = {"network": network, "quantizers": quantizers}
    kernels = tuple(f"{layer}/kernel" for layer in quantized_layers(model))
    gwk = config.gwk or GWKPhase(epochs=1)
    in_steps, tuning = kind == "clustered in steps", kind == "codebooks"
    if in_steps or kind == "clustered after epochs":
        clusters = clustering.cluster(network, None, kernels, gwk, jax.random.key(config.seed))
    if tuning and clusters is not None:
        params["codebooks"] = codebooks(clusters.tree)
    optimizer = _optimizer(config, kind, total, network)
    start = TrainState(params, rest, optimizer.init(params), jnp.int32(0), clusters)
    taught = (
        None
        if teacher is None
        else nnx.split(nnx.view(teacher, use_running_average=True, deterministic=True, raise_if_not_found=False))
    )

    def merge(state: TrainState, training: bool = True, key: jax.Array | None = None) -> Any:
        keys = rng if key is None else jax.tree.map(partial(_fold, key), rng)
        network = state.params["network"]
        if in_steps:
            network = clustering.seen(network, state.clusters)
        elif tuning:
            network = clustering.replaced(network, state.clusters, state.params["codebooks"])
        return nnx.merge(graphs[training], state.params["quantizers"], network, keys, state.rest)

    def loss_of(model: Any, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model(inputs)
        right = jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))
        soft = nnx.merge(*taught)(inputs) if taught is not None and config.distillation else None
        return mean_loss(logits, labels, soft, config.distillation, config.temperature), right

    def rest_of(model: Any) -> Any:
        return nnx.to_pure_dict(nnx.split(model, *_FILTERS)[4])

    def loss(params: Any, state: TrainState, inputs: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        running = merge(state._replace(params=params), key=key)
        if rounds:
            set_quantizers(running, progress=state.step / total)
        value, right = loss_of(running, inputs, labels)
        return value, (rest_of(running), right)

    def augmented(state: TrainState, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        images, labels = batch
        augment_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        return data.inputs(augment(augment_key, images, pad=data.pad, flip=data.flip)), labels, model_key

    def gradients(state: TrainState, batch: Any) -> Any:
        return jax.value_and_grad(loss, has_aux=True)(state.params, state, *augmented(state, batch))

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, (rest, right)), grads = gradients(state, batch)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params, clusters = optax.apply_updates(state.params, updates), state.clusters
        if in_steps:
            clusters = clustering.follow(clusters, params["network"], grads["network"], gwk, state.step / total)
        return TrainState(params, rest, moments, state.step + 1, clusters), {"loss": value, "accuracy": right}

    @jax.jit
    def reconstructed(state: TrainState, batch: Any, epoch: int) -> TrainState:
        """By the gradients of the epoch's last batch."""
        _, grads = gradients(state, batch)
        key = jax.random.fold_in(jax.random.key(config.seed), epoch)
        clusters = clustering.cluster(state.params["network"], grads["network"], kernels, gwk, key, start=state.clusters)
        network = clustering.replaced(state.params["network"], clusters)
        return state._replace(params=state.params | {"network": network}, clusters=clusters)

    @jax.jit
    def measured(state: TrainState, batch: Any, epoch: int) -> tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
        inputs, labels, model_key = augmented(state, batch)
        model = merge(state, key=model_key)
        key = jax.random.fold_in(jax.random.key(config.seed), epoch)
        deltas, info = hessian_deltas(model, lambda model: loss_of(model, inputs, labels)[0], key)
        set_quantizers(model, delta=deltas)
        return state._replace(rest=rest_of(model)), deltas, {name: found.reason for name, found in info.items()}

    @jax.jit
    def evaluate(state: TrainState, batch: Any, mask: jax.Array) -> dict[str, jax.Array]:
        images, labels = batch
        logits = merge(state, training=False)(data.inputs(images))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (jnp.argmax(logits, axis=1) == labels) & ~jnp.isnan(logits).any(axis=1)
        return {"loss": jnp.sum(losses * mask), "accuracy": jnp.sum(right * mask)}

    return Functions(start, step, reconstructed, measured, evaluate, merge)


def _fold(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Keys of the model's own draws follow from the step's; counters stay where they start."""
    return key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
