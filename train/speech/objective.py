"""Objective of speech recognition: CTC of a DeepSpeech 2 as a function of its parameters, with masked spectrograms."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bqjax.models.audio import spec_augment
from bqjax.models.ctc import ctc_losses
from train.data.utterances import Batch
from train.schemes import Scheme
from train.speech.config import SpeechConfig
from train.step import Network, Training, TrainState, start

__all__ = ["SpeechObjective", "speech_training"]

PHASE = "float"
_FILTERS = (nnx.Param, nnx.RngState, ...)


class SpeechObjective:
    """The config's network, from its first weights.

    Args:
      config: of the run.

    Attributes:
      params, statistics: nested dicts of arrays.
      transcribe: ``transcribe(state, batch) -> (logits, lengths, losses, possible)``, compiled, in evaluation mode.
    """

    def __init__(self, config: SpeechConfig):
        self._config, model = config, config.network()
        modes = {
            training: nnx.view(model, use_running_average=not training, deterministic=not training, raise_if_not_found=False)
            for training in (True, False)
        }
        self._graphs = {training: nnx.split(modes[training], *_FILTERS)[0] for training in modes}
        self.params, self._rng, self.statistics = (nnx.to_pure_dict(s) for s in nnx.split(modes[True], *_FILTERS)[1:])
        self.transcribe = jax.jit(self._transcribe)

    def __call__(self, network: Network, batch: Batch, key: jax.Array, progress: jax.Array, teacher: None) -> Any:
        """See :data:`train.step.Objective`. The loss is that of a character; the values are sums over the batch: ``loss``,
        ``characters``, and ``impossible``, the utterances too short for their transcripts."""
        augment_key, model_key = jax.random.split(key)
        keys = jax.tree.map(partial(_folded, model_key), self._rng)
        running = nnx.merge(self._graphs[True], network.weights, keys, network.statistics)
        logits, lengths = running(self._augmented(augment_key, batch), jnp.asarray(batch.lengths))
        losses, possible = ctc_losses(logits, lengths, jnp.asarray(batch.labels), jnp.asarray(batch.label_lengths))
        counted = jnp.asarray(batch.mask) != 0
        characters = jnp.sum(jnp.where(counted & possible, batch.label_lengths, 0)).astype(jnp.float32)
        whole = jnp.sum(jnp.where(counted, losses, 0))
        sums = {"loss": whole, "characters": characters, "impossible": jnp.sum(counted & ~possible)}
        return whole / jnp.maximum(characters, 1.0), (nnx.to_pure_dict(nnx.split(running, *_FILTERS)[3]), sums)

    def _augmented(self, key: jax.Array, batch: Batch) -> jax.Array:
        config = self._config
        if not (config.time_masks or config.frequency_masks):
            return jnp.asarray(batch.inputs)
        widths = {"time_width": config.time_width, "frequency_width": config.frequency_width}
        masks = {"time_masks": config.time_masks, "frequency_masks": config.frequency_masks}
        return spec_augment(key, jnp.asarray(batch.inputs), jnp.asarray(batch.lengths), **masks, **widths)

    def _transcribe(self, network: Network, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        running = nnx.merge(self._graphs[False], network.weights, self._rng, network.statistics)
        logits, lengths = running(jnp.asarray(batch.inputs), jnp.asarray(batch.lengths))
        losses, possible = ctc_losses(logits, lengths, jnp.asarray(batch.labels), jnp.asarray(batch.label_lengths))
        return logits, lengths, losses, possible


def speech_training(config: SpeechConfig, objective: SpeechObjective, steps: int) -> tuple[Training, TrainState]:
    """The phase of a run of ``steps`` an epoch, and the state that it starts from."""
    total = steps * config.epochs
    warmup = int(config.warmup * total)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(total, warmup + 1))
    training = Training(
        name=PHASE,
        scheme=Scheme(),
        objective=objective,
        optimizer=optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.add_decayed_weights(config.weight_decay),
            optax.adam(schedule),
        ),
        epochs=config.epochs,
        steps=steps,
        key=jax.random.key(config.seed),
    )
    return training, start(training, objective.params, {}, objective.statistics, training.key)


def _folded(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Keys of dropout follow from the step's; counters stay where they start."""
    return key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
