"""Training of speech recognition with CTC, from checkpoint to checkpoint.

As in :mod:`train.image.loop`, a run that is killed and started again gives the numbers of one that was not: the order of an
epoch's data follows from ``(seed, epoch)``, every draw of a step from ``(seed, step)``, and the rest is in the
checkpoint of the last epoch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bqjax.adapters.safetensors import write_weights
from bqjax.core.progress import Progress
from bqjax.core.tree import named_leaves
from bqjax.models.audio import spec_augment
from bqjax.models.ctc import ctc_losses
from bqjax.models.transcripts import ENGLISH
from train.checkpoint import Checkpoints, checked_config
from train.data.an4 import Utterances, an4_splits
from train.data.librispeech import librispeech_splits
from train.data.utterances import Batch, Speech, batches, bucket_frames, features_of
from train.log import MetricsLog
from train.speech.config import SpeechConfig
from train.speech.error_rates import beam_rates, greedy_rates

__all__ = ["SpeechFunctions", "SpeechState", "run_speech", "speech_data", "speech_functions"]

PHASE = "float"


class SpeechState(NamedTuple):
    """What a step takes and gives: parameters, running statistics of BatchNorm, Optax's state, steps done."""

    params: Any
    statistics: Any
    optimizer: Any
    step: Any


class SpeechFunctions(NamedTuple):
    """What a run is made of.

    Attributes:
      start: the state at its start.
      step: ``(state, batch) -> (state, {"loss": ..., "characters": ..., "impossible": ...})``, sums over the batch; takes over the
        buffers of the state.
      transcribe: ``(state, batch) -> (logits, lengths, losses, possible)``, in evaluation mode.
    """

    start: SpeechState
    step: Callable[[SpeechState, Batch], tuple[SpeechState, dict[str, jax.Array]]]
    transcribe: Callable[[SpeechState, Batch], tuple[jax.Array, jax.Array, jax.Array, jax.Array]]


def speech_data(config: SpeechConfig, data_dir: Path | None) -> dict[str, Speech]:
    """Features of the training, calibration and test utterances of a config, padded to the same shapes.

    Raises:
      ValueError: there is no data folder, or a file in it is missing or damaged; fewer training utterances than the
        config asks for.
      ImportError: soundfile is not installed.
    """
    if data_dir is None:
        folder = {"an4": "an4", "librispeech": "tfds/librispeech"}[config.dataset]
        raise ValueError(f"--data-dir is missing: it must name a folder with {folder}")
    splits = _splits(config, data_dir)
    front_end = config.front_end
    shapes = bucket_frames(np.array([front_end.n_frames(len(pcm)) for pcm in splits["train"].pcm]), config.buckets)
    return {name: features_of(utterances, front_end, ENGLISH, shapes) for name, utterances in splits.items()}


def _splits(config: SpeechConfig, data_dir: Path) -> dict[str, Utterances]:
    if config.dataset == "librispeech":
        return librispeech_splits(data_dir, config.train_utterances, config.seed)
    splits = an4_splits(data_dir, config.calibration_speakers)
    if config.train_utterances is not None:
        n = len(splits["train"].pcm)
        if config.train_utterances > n:
            raise ValueError(f"train_utterances is {config.train_utterances}, but there are {n} training utterances")
        rows = np.random.default_rng(config.seed).permutation(n)[: config.train_utterances]
        splits["train"] = splits["train"].take(rows.tolist())
    return splits


def run_speech(
    config: SpeechConfig,
    out: Path,
    data_dir: Path | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains as the config says, or goes on where an earlier call with the same folder was interrupted.

    Args:
      config: of the run.
      out: folder of the run: ``config.json``, ``metrics.jsonl``, checkpoints, and the last epoch's network as
        ``model.safetensors`` (parameters and running statistics by name).
      data_dir: folder of the data.
      progress: called as ``progress(step, total, message)`` after each step.
      say: called with one line after each epoch.

    Returns:
      Error rates of the last epoch's network on the test data, ``"WER"`` and ``"CER"``, and with a beam width ``"WER, beam"``
      and ``"CER, beam"``.

    Raises:
      ValueError: data are missing or damaged; the folder holds a run of another config; no training utterance has
        enough frames for its transcript.
    """
    data = speech_data(config, data_dir)
    if not any(_possible(config, data["train"])):
        raise ValueError(f"no training utterance has enough frames for its transcript: use smaller strides than {config.strides}")
    checked_config(out, config)
    steps = sum(1 for _ in batches(data["train"], config.batch_size, None))
    parts = speech_functions(config, steps * config.epochs)
    # What is being written is waited for even where training ends by an exception: a next run in this process may not meet it.
    with contextlib.closing(Checkpoints(out / PHASE, "-cer")) as checkpoints:
        done, state = checkpoints.restore(parts.start) or (0, parts.start)
        state = jax.tree.map(jnp.asarray, state)
        log = MetricsLog(out, PHASE, done)
        for epoch in range(done, config.epochs):
            start, sums = time.perf_counter(), []
            order = np.random.default_rng((config.seed, epoch))
            for i, (_, batch) in enumerate(batches(data["train"], config.batch_size, order, ascending=not epoch)):
                state, of_step = parts.step(state, batch)
                sums.append(of_step)
                if progress is not None:
                    # A step's numbers of some time ago: those of the last would have to be waited for.
                    shown = sums[max(0, i - 2)]
                    loss = float(shown["loss"]) / max(float(shown["characters"]), 1.0)
                    progress(epoch * steps + i + 1, config.epochs * steps, f"loss {loss:.3f}")
            total = {key: float(np.sum([s[key] for s in sums])) for key in sums[0]}
            seconds = time.perf_counter() - start
            loss = total["loss"] / total["characters"]
            measured, _ = greedy_rates(partial(parts.transcribe, state), data["calibration"], config.batch_size)
            values = {"train_loss": loss, "impossible": total["impossible"], **measured, "seconds": seconds}
            log.write(epoch + 1, values)
            rate = len(data["train"].texts) / seconds
            lost = f", {total['impossible']:.0f} utterances too short for their transcripts" if total["impossible"] else ""
            say(
                f"{epoch + 1}/{config.epochs}: loss {loss:.4f} a character, calibration {measured['loss']:.4f}, "
                f"WER {measured['wer']:.2%}, CER {measured['cer']:.2%}, {seconds:.1f} s, {rate:.1f} utterances/s{lost}"
            )
            checkpoints.save(epoch + 1, state, {"-cer": -measured["cer"]})
    log.close()
    network = {**named_leaves(state.params), **named_leaves(state.statistics)}
    write_weights(out / "model.safetensors", jax.tree.map(np.asarray, network), force=True)
    measured, logits = greedy_rates(partial(parts.transcribe, state), data["test"], config.batch_size)
    figures = {"WER": measured["wer"], "CER": measured["cer"]}
    if config.beam_width:
        beam = beam_rates(logits, data["test"], config.beam_width)
        figures |= {"WER, beam": beam["wer"], "CER, beam": beam["cer"]}
    return figures


def _possible(config: SpeechConfig, speech: Speech) -> list[bool]:
    """Which utterances have as many frames behind the convolutions as CTC needs: one a character, one between equal ones."""
    found = []
    for frames, labels in zip(speech.frames.tolist(), speech.labels, strict=True):
        for stride, _ in config.strides:
            frames = -(-frames // stride)
        found.append(frames >= len(labels) + sum(a == b for a, b in pairwise(labels)))
    return found


def speech_functions(config: SpeechConfig, total: int) -> SpeechFunctions:
    """The functions of a run of ``total`` steps."""
    model = config.network()
    filters = (nnx.Param, nnx.RngState, ...)
    modes = {
        training: nnx.view(model, use_running_average=not training, deterministic=not training, raise_if_not_found=False)
        for training in (True, False)
    }
    graphs = {training: nnx.split(modes[training], *filters)[0] for training in modes}
    params, rng, statistics = (nnx.to_pure_dict(s) for s in nnx.split(modes[True], *filters)[1:])
    warmup = int(config.warmup * total)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(total, warmup + 1))
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.add_decayed_weights(config.weight_decay),
        optax.adam(schedule),
    )

    def augmented(key: jax.Array, batch: Batch) -> jax.Array:
        if not (config.time_masks or config.frequency_masks):
            return jnp.asarray(batch.inputs)
        widths = {"time_width": config.time_width, "frequency_width": config.frequency_width}
        masks = {"time_masks": config.time_masks, "frequency_masks": config.frequency_masks}
        return spec_augment(key, jnp.asarray(batch.inputs), jnp.asarray(batch.lengths), **masks, **widths)

    def loss(params: Any, statistics: Any, inputs: jax.Array, batch: Batch, key: jax.Array) -> Any:
        keys = jax.tree.map(partial(_fold, key), rng)
        running = nnx.merge(graphs[True], params, keys, statistics)
        logits, lengths = running(inputs, jnp.asarray(batch.lengths))
        losses, possible = ctc_losses(logits, lengths, jnp.asarray(batch.labels), jnp.asarray(batch.label_lengths))
        counted = jnp.asarray(batch.mask) != 0
        characters = jnp.sum(jnp.where(counted & possible, batch.label_lengths, 0)).astype(jnp.float32)
        whole = jnp.sum(jnp.where(counted, losses, 0))
        sums = {"loss": whole, "characters": characters, "impossible": jnp.sum(counted & ~possible)}
        return whole / jnp.maximum(characters, 1.0), (nnx.to_pure_dict(nnx.split(running, *filters)[3]), sums)

    @partial(jax.jit, donate_argnums=0)
    def step(state: SpeechState, batch: Batch) -> tuple[SpeechState, dict[str, jax.Array]]:
        augment_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        inputs = augmented(augment_key, batch)
        (_, (statistics, sums)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.statistics, inputs, batch, model_key
        )
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        return SpeechState(optax.apply_updates(state.params, updates), statistics, moments, state.step + 1), sums

    @jax.jit
    def transcribe(state: SpeechState, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        running = nnx.merge(graphs[False], state.params, rng, state.statistics)
        logits, lengths = running(jnp.asarray(batch.inputs), jnp.asarray(batch.lengths))
        losses, possible = ctc_losses(logits, lengths, jnp.asarray(batch.labels), jnp.asarray(batch.label_lengths))
        return logits, lengths, losses, possible

    return SpeechFunctions(SpeechState(params, statistics, optimizer.init(params), jnp.int32(0)), step, transcribe)


def _fold(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Keys of dropout follow from the step's; counters stay where they start."""
    return key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
