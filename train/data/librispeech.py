"""LibriSpeech through TensorFlow Datasets: read speech, 16 kHz, with transcripts, for those who have prepared it.

Panayotov et al. Librispeech: an ASR corpus based on public domain audio books. ICASSP 2015.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from train.data.an4 import Utterances
from train.data.tfds import open_records

__all__ = ["librispeech_splits"]

SPLITS = {"train": "train_clean100", "calibration": "dev_clean", "test": "test_clean"}


def librispeech_splits(
    data_dir: str | os.PathLike[str], train_utterances: int | None = None, seed: int = 0
) -> dict[str, Utterances]:
    """The 100 hours of clean speech to train on, ``dev_clean`` as calibration data, and ``test_clean``; speakers differ.

    Sound is held in memory, 115 MB an hour; an utterance that is not drawn is not read.

    Args:
      data_dir: the folder that holds ``tfds/librispeech/<version>/`` in array_record format.
      train_utterances: how many of the 28,539 training utterances to use, drawn by the seed; None uses all.
      seed: of that draw.

    Returns:
      ``"train"``, ``"calibration"`` and ``"test"``, each in the order of its ids.

    Raises:
      ValueError: the data set is missing or cannot be read, has fewer training utterances than are asked for, or holds
        something other than int16 samples with a text.
      ImportError: tensorflow_datasets is not installed.
    """
    tfds_dir, found = Path(data_dir) / "tfds", {}
    for name, split in SPLITS.items():
        source = _source(tfds_dir, split)
        rows = np.arange(len(source))
        if name == "train" and train_utterances is not None:
            if train_utterances > len(source):
                raise ValueError(f"train_utterances is {train_utterances}, but {split} has {len(source)} utterances")
            rows = np.sort(np.random.default_rng(seed).permutation(len(source))[:train_utterances])
        found[name] = _utterances(source, rows, split)
    return found


def _source(tfds_dir: Path, split: str) -> Any:
    try:
        return open_records(tfds_dir, "librispeech", split)
    except ValueError as error:
        raise ValueError(
            f"there is no LibriSpeech ({split}) in array_record format in {tfds_dir}. Prepare it, with TensorFlow installed, by "
            f'tfds.builder("librispeech", data_dir="{tfds_dir}", file_format="array_record").download_and_prepare(): '
            f"{error.__cause__}"
        ) from error


def _utterances(source: Any, rows: np.ndarray, split: str) -> Utterances:
    read = []
    for row in rows.tolist():
        example = source[row]
        name, text, samples = _text(example["id"]), _text(example["text"]).strip().upper(), np.asarray(example["speech"])
        pcm = samples.astype(np.int16)  # TensorFlow Datasets gives int64
        if samples.ndim != 1 or not samples.size or (pcm != samples).any():
            raise ValueError(
                f"LibriSpeech ({split}), utterance {name!r}: samples must be [n] integers of 16 bits, at least one, got "
                f"{samples.dtype} {samples.shape}"
            )
        if not text:
            raise ValueError(f"LibriSpeech ({split}), utterance {name!r} has no text")
        read.append((name, pcm, text, str(int(example["speaker_id"]))))
    names, clips, texts, speakers = zip(*sorted(read, key=lambda utterance: utterance[0]), strict=True)
    return Utterances(clips, texts, speakers, names)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
