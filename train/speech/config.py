"""What a training run of speech recognition is: everything that its result depends on, besides the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flax import nnx

from bqjax.models.audio import SpectrogramConfig
from bqjax.models.deep_speech import DeepSpeech2
from bqjax.models.transcripts import ENGLISH

__all__ = ["SpeechConfig"]

Dataset = Literal["an4", "librispeech"]


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """A run of ``python -m train`` that trains a DeepSpeech 2 with CTC. Defaults train on AN4 on two cores.

    Attributes:
      dataset: ``"an4"``, or ``"librispeech"`` as :mod:`train.data.librispeech` reads it.
      n_mels: mel filters of the spectrogram; 0 keeps its 161 bins.
      channels, kernels, strides, layers, cells, dropout: of :class:`bqjax.models.deep_speech.DeepSpeech2`.
      epochs: over the training utterances; the first goes from short utterances to long ones.
      batch_size: utterances a step.
      buckets: groups of utterances of similar length; each is padded to one shape, so that there are as many compilations.
      learning_rate: Adam's largest; it rises for ``warmup`` of the run and then falls to 0 along a cosine.
      warmup: share of the run.
      weight_decay: added to gradients as ``weight_decay * w``.
      clip: largest norm of the gradient of the loss a character.
      time_masks, time_width, frequency_masks, frequency_width: of :func:`bqjax.models.audio.spec_augment`; no masks, no
      augmentation.
      calibration_speakers: AN4's training speakers that are not trained on; the best checkpoint is chosen by them. LibriSpeech has
        a split of its own for that.
      train_utterances: how many of the training utterances to use, drawn by the seed; None uses all.
      beam_width: of the beam search on the test data beside greedy decoding; 0 leaves it out.
      seed: every draw follows from it and the step, the order of the data from it and the epoch.

    Raises:
      ValueError: a number is out of range.
    """

    dataset: Dataset = "an4"
    n_mels: int = 80
    channels: tuple[int, ...] = (16, 16)
    kernels: tuple[tuple[int, int], ...] = ((11, 21), (11, 11))
    strides: tuple[tuple[int, int], ...] = ((3, 2), (1, 2))
    layers: int = 3
    cells: int = 256
    dropout: float = 0.1
    epochs: int = 70
    batch_size: int = 16
    buckets: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-5
    clip: float = 1.0
    time_masks: int = 2
    time_width: int = 30
    frequency_masks: int = 2
    frequency_width: int = 12
    calibration_speakers: int = 8
    train_utterances: int | None = None
    beam_width: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in get_args(Dataset):
            raise ValueError(f"dataset must be one of {', '.join(get_args(Dataset))}, got {self.dataset!r}")
        for field in ("epochs", "batch_size", "buckets", "layers", "cells", "calibration_speakers"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("n_mels", "time_masks", "time_width", "frequency_masks", "frequency_width", "beam_width"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        for field in ("learning_rate", "weight_decay"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) >= 0):
                raise ValueError(f"{field} must be finite and at least 0, got {getattr(self, field)}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")
        for field in ("warmup", "dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} is a share from 0 to below 1, got {getattr(self, field)}")
        if self.train_utterances is not None and self.train_utterances < 1:
            raise ValueError(f"train_utterances must be at least 1, got {self.train_utterances}")

    @property
    def front_end(self) -> SpectrogramConfig:
        """The spectrogram: frames of 25 ms where mel filters gather it, otherwise the 20 ms of DeepSpeech 2."""
        if self.n_mels:
            return SpectrogramConfig(frame_length=400, fft_length=512, n_mels=self.n_mels, floor=1e-3)
        return SpectrogramConfig()

    def network(self) -> Any:
        """The network with its first weights, in training mode."""
        return DeepSpeech2(
            self.front_end.features,
            ENGLISH.classes,
            channels=self.channels,
            kernels=self.kernels,
            strides=self.strides,
            layers=self.layers,
            cells=self.cells,
            dropout=self.dropout,
            rngs=nnx.Rngs(self.seed),
        )
