"""Training of speech recognition with CTC: the data of a config, a run of :mod:`train.fit`, and error rates at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np

from bqjax.adapters.safetensors import write_weights
from bqjax.core.progress import Progress
from bqjax.core.tree import named_leaves
from bqjax.models.transcripts import ENGLISH
from train.checkpoint import checked_config
from train.data.an4 import Utterances, an4_splits
from train.data.librispeech import librispeech_splits
from train.data.utterances import Batch, Speech, batches, bucket_frames, features_of
from train.fit import Folder, Measures, fit
from train.speech.config import SpeechConfig
from train.speech.error_rates import beam_rates, greedy_rates
from train.speech.objective import SpeechObjective, speech_training
from train.step import TrainState, network_of

__all__ = ["run_speech", "speech_data"]


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
    steps, size = sum(1 for _ in batches(data["train"], config.batch_size, None)), config.batch_size
    objective = SpeechObjective(config)
    training, first = speech_training(config, objective, steps)

    def greedily(state: TrainState, split: str) -> tuple[dict[str, float], list[np.ndarray]]:
        return greedy_rates(partial(objective.transcribe, network_of(training.scheme, state)), data[split], size)

    state, _ = fit(
        training,
        first,
        lambda epoch: _epoch(config, data["train"], epoch),
        Measures(_summary, lambda state: greedily(state, "calibration")[0], partial(_line, config, len(data["train"].texts))),
        folder=Folder(out, "-cer"),
        progress=progress,
        say=say,
    )
    weights = {**named_leaves(network_of(training.scheme, state).weights), **named_leaves(state.statistics)}
    write_weights(out / "model.safetensors", jax.tree.map(np.asarray, weights), force=True)
    measured, logits = greedily(state, "test")
    figures = {"WER": measured["wer"], "CER": measured["cer"]}
    if config.beam_width:
        beam = beam_rates(logits, data["test"], config.beam_width)
        figures |= {"WER, beam": beam["wer"], "CER, beam": beam["cer"]}
    return figures


def _epoch(config: SpeechConfig, speech: Speech, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch, in an order that follows from seed and epoch; the first goes from short to long."""
    order = np.random.default_rng((config.seed, epoch))
    for _, batch in batches(speech, config.batch_size, order, ascending=not epoch):
        yield batch


def _summary(values: dict[str, np.ndarray]) -> dict[str, float]:
    total = {key: float(value.sum()) for key, value in values.items()}
    return {"train_loss": total["loss"] / max(total["characters"], 1.0), "impossible": total["impossible"]}


def _line(config: SpeechConfig, utterances: int, epoch: int, of: dict[str, float]) -> str:
    lost = f", {of['impossible']:.0f} utterances too short for their transcripts" if of["impossible"] else ""
    return (
        f"{epoch}/{config.epochs}: loss {of['train_loss']:.4f} a character, calibration {of['loss']:.4f}, WER {of['wer']:.2%}, "
        f"CER {of['cer']:.2%}, {of['seconds']:.1f} s, {utterances / of['seconds']:.1f} utterances/s{lost}"
    )


def _possible(config: SpeechConfig, speech: Speech) -> list[bool]:
    """Which utterances have as many frames behind the convolutions as CTC needs: one a character, one between equal ones."""
    found = []
    for frames, labels in zip(speech.frames.tolist(), speech.labels, strict=True):
        for stride, _ in config.strides:
            frames = -(-frames // stride)
        found.append(frames >= len(labels) + sum(a == b for a, b in pairwise(labels)))
    return found
