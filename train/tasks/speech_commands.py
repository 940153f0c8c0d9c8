"""The published Speech Commands network as a task: clips of sound with their labels, and their features."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.classification import batches, classification_task
from bqjax.core.task import Task
from bqjax.models.spc import BATCH_SIZE, FEATURES, load_spc, spc_features

__all__ = ["SpeechClips", "read_speech", "spc_task"]


CLIP_SAMPLES = 16_000


class SpeechClips(NamedTuple):
    """Spoken words.

    Attributes:
      pcm: ``[n, 16000]`` int16, one second at 16 kHz.
      labels: ``[n]`` int32 indices into ``names``.
      speakers: ``[n]`` speakers' names.
      names: the words (and ``_silence_``, ``_unknown_``) that the labels stand for.
    """

    pcm: np.ndarray
    labels: np.ndarray
    speakers: np.ndarray
    names: tuple[str, ...]


def read_speech(folder: str | os.PathLike[str], split: str) -> SpeechClips:
    """Reads ``speech_<split>.flac``, ``speech_<split>.tsv`` and ``labels.txt``.

    Args:
      folder: where the files are.
      split: ``"test"`` or ``"calibration"``.

    Returns:
      The clips in the order of the table.

    Raises:
      ValueError: a file is missing or damaged, the sound is not 16 kHz mono, its length is not that of the table's
        clips, or a label is not one of ``labels.txt``.
      ImportError: soundfile is not installed.
    """
    folder = Path(folder)
    sound_path, table_path, names_path = folder / f"speech_{split}.flac", folder / f"speech_{split}.tsv", folder / "labels.txt"
    for path in (names_path, table_path, sound_path):
        if not path.is_file():
            raise ValueError(f"{path} is missing: it is part of the Speech Commands data")
    names = tuple(names_path.read_text(encoding="utf-8").split())
    labels, speakers = _read_table(table_path, names)
    pcm = _read_sound(sound_path)
    if len(pcm) != len(labels) * CLIP_SAMPLES:
        raise ValueError(f"{sound_path}: {len(labels)} clips have {len(labels) * CLIP_SAMPLES} samples, the file has {len(pcm)}")
    return SpeechClips(pcm.reshape(-1, CLIP_SAMPLES), labels, speakers, names)


def _read_table(path: Path, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows:
        raise ValueError(f"{path} lists no clips")
    labels = []
    for i, row in enumerate(rows):
        label, word = row.get("label"), row.get("word")
        if label is None or word is None or row.get("speaker") is None:
            raise ValueError(f"{path}: clip {i} lacks label, word or speaker")
        if not label.isdecimal() or int(label) >= len(names) or names[int(label)] != word:
            raise ValueError(f"{path}: clip {i} has label {label!r} for {word!r}, which labels.txt does not")
        labels.append(int(label))
    return np.asarray(labels, np.int32), np.asarray([row["speaker"] for row in rows])


def _read_sound(path: Path) -> np.ndarray:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError('reading speech needs soundfile: pip install "bqjax[speech]"') from error
    try:
        pcm, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} is no readable sound file: {error}") from error
    if rate != FEATURES.sample_rate or pcm.shape[1] != 1:
        raise ValueError(f"{path} must be {FEATURES.sample_rate} Hz mono, got {rate} Hz with {pcm.shape[1]} channels")
    return pcm[:, 0]


def spc_task(data_dir: str | os.PathLike[str]) -> Task:
    """The trained network with calibration and test clips of disjoint speakers; MFCCs are computed once, here.

    The splits hold 8 command words of the network's 11 labels, and accuracy takes the argmax over those that occur.

    Args:
      data_dir: the folder with ``weights/spc_conv.safetensors`` and ``speech/``.

    Raises:
      ValueError: a file is missing or damaged (see :func:`load_spc` and :func:`read_speech`).
      ImportError: soundfile is not installed.
    """
    data_dir = Path(data_dir)
    model = load_spc(data_dir / "weights" / "spc_conv.safetensors")
    splits = {split: read_speech(data_dir / "speech", split) for split in ("calibration", "test")}
    classes = sorted({int(label) for clips in splits.values() for label in clips.labels})
    made: dict[str, list[Any]] = {
        split: batches(spc_features(clips.pcm), clips.labels, BATCH_SIZE) for split, clips in splits.items()
    }
    return classification_task(
        nnx_apply(model),
        nnx_params(model),
        made["calibration"],
        made["test"],
        name="Speech Commands conv",
        classes=classes,
        calibration_name="speech_calibration",
        test_name="speech_test",
    )
