"""Utterances as batches of few shapes: sorted into buckets of similar length, each padded to one number of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bqjax.models.audio import SpectrogramConfig, log_spectrogram, normalized
from bqjax.models.transcripts import Alphabet
from train.data.an4 import Utterances

__all__ = ["Batch", "Speech", "batches", "bucket_frames", "features_of"]

_MULTIPLE = 50
_PIECE = 32


class Batch(NamedTuple):
    """Utterances of one bucket.

    Attributes:
      inputs: ``[n, t, features]`` float32.
      lengths: ``[n]`` frames.
      labels: ``[n, m]`` classes.
      label_lengths: ``[n]``.
      mask: ``[n]``, 0 for utterances that only fill the batch up.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    label_lengths: np.ndarray
    mask: np.ndarray


class Speech(NamedTuple):
    """Utterances with their features, by bucket.

    Attributes:
      frames: ``[n]`` of each utterance.
      padded: ``[n]`` frames that its bucket pads it to.
      inputs: ``[frames, features]`` of each, without padding.
      labels: classes of each.
      texts: of each.
    """

    frames: np.ndarray
    padded: np.ndarray
    inputs: list[np.ndarray]
    labels: list[list[int]]
    texts: tuple[str, ...]


def bucket_frames(frames: np.ndarray, buckets: int) -> list[int]:
    """Shapes that pad utterances little: the lengths at equal shares of all, rounded up to a multiple of 50 frames.

    Args:
      frames: ``[n]`` of the training utterances.
      buckets: at most how many; fewer where rounding makes them equal.

    Returns:
      Frames of each bucket, ascending; the last holds the longest utterance.

    Example:
      >>> bucket_frames(np.array([70, 90, 120, 310]), 2)
      [100, 350]
    """
    shares = np.quantile(frames, np.arange(1, buckets + 1) / buckets, method="lower")
    return sorted({int(-(-share // _MULTIPLE) * _MULTIPLE) for share in shares})


def features_of(utterances: Utterances, config: SpectrogramConfig, alphabet: Alphabet, shapes: Sequence[int] = ()) -> Speech:
    """Features and labels of utterances.

    Args:
      utterances: of one split.
      config: the front end.
      alphabet: of the transcripts.
      shapes: frames of the buckets, ascending. Longer utterances get shapes of their own, multiples of 50.

    Raises:
      ValueError: an utterance is shorter than one frame, or its text has characters outside of the alphabet.
    """
    frames = np.array([config.n_frames(len(pcm)) for pcm in utterances.pcm])
    if (frames < 1).any():
        name = utterances.names[int(np.argmin(frames))]
        raise ValueError(f"utterance {name!r} is shorter than one frame of {config.frame_length} samples: leave it out")
    labels = []
    for name, text in zip(utterances.names, utterances.texts, strict=True):
        try:
            labels.append(alphabet.encode(text))
        except ValueError as error:
            raise ValueError(f"utterance {name!r}: {error}") from error
    padded = np.array([next((s for s in shapes if s >= f), int(-(-f // _MULTIPLE) * _MULTIPLE)) for f in frames])
    front_end = jax.jit(lambda pcm, lengths: normalized(log_spectrogram(pcm, config), lengths))
    inputs: list[np.ndarray] = [np.empty(0)] * len(frames)
    for shape in sorted(set(padded.tolist())):
        rows = np.flatnonzero(padded == shape)
        for start in range(0, len(rows), _PIECE):
            piece = rows[start : start + _PIECE]
            pcm = np.zeros((_PIECE, config.frame_length + (shape - 1) * config.frame_step), np.int16)
            for i, row in enumerate(piece):
                clip = utterances.pcm[row][: pcm.shape[1]]
                pcm[i, : len(clip)] = clip
            out = np.asarray(front_end(pcm, np.pad(frames[piece], (0, _PIECE - len(piece)))))
            for i, row in enumerate(piece):
                inputs[row] = out[i, : frames[row]].copy()
    return Speech(frames, padded, inputs, labels, utterances.texts)


def batches(
    speech: Speech, size: int, order: np.random.Generator | None, *, ascending: bool = False
) -> Iterator[tuple[np.ndarray, Batch]]:
    """All utterances once, in batches of ``size``.

    Args:
      speech: from :func:`features_of`.
      size: utterances a batch; the last of a bucket is filled up with its first utterance under a mask of 0.
      order: shuffles utterances within buckets and the batches; None keeps everything in order.
      ascending: from the shortest bucket to the longest, also where ``order`` shuffles.

    Yields:
      The rows of a batch's utterances, without what fills it up, and the batch.
    """
    most = max(map(len, speech.labels))
    chunks = []
    for shape in sorted(set(speech.padded.tolist())):
        rows = np.flatnonzero(speech.padded == shape)
        rows = rows if order is None else order.permutation(rows)
        chunks += [rows[i : i + size] for i in range(0, len(rows), size)]
    turns = range(len(chunks)) if order is None or ascending else order.permutation(len(chunks))
    for turn in turns:
        rows = chunks[int(turn)]
        filled = np.concatenate([rows, np.full(size - len(rows), rows[0])])
        inputs = np.zeros((size, int(speech.padded[rows[0]]), speech.inputs[rows[0]].shape[1]), np.float32)
        labels = np.zeros((size, most), np.int32)
        for i, row in enumerate(filled):
            inputs[i, : speech.frames[row]] = speech.inputs[row]
            labels[i, : len(speech.labels[row])] = speech.labels[row]
        lengths = speech.frames[filled].astype(np.int32)
        label_lengths = np.array([len(speech.labels[row]) for row in filled], np.int32)
        yield rows, Batch(inputs, lengths, labels, label_lengths, (np.arange(size) < len(rows)).astype(np.float32))
