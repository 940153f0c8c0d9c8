"""CMU AN4: short utterances of spelled names, dates and numbers, 16 kHz, with transcripts.

The official split: 870 utterances of 68 speakers to train on, 130 of 10 others to test on. The folder holds, for each of
the two, the utterances end to end as one sound file and a table of them.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["SAMPLE_RATE", "Utterances", "an4_splits", "read_an4"]

SAMPLE_RATE = 16_000
SPLITS = ("train", "test")
_FIELDS = ("utt", "speaker", "start", "length", "text")
# Share of samples at the end of the range from which a clip counts as clipped: loud speech touches it now and then.
_CLIPPED = 0.01


class Utterances(NamedTuple):
    """Utterances of one split.

    Attributes:
      pcm: ``[samples]`` int16 each.
      texts: what is said.
      speakers: who says it.
      names: of the utterances.
    """

    pcm: tuple[np.ndarray, ...]
    texts: tuple[str, ...]
    speakers: tuple[str, ...]
    names: tuple[str, ...]

    def take(self, rows: Sequence[int]) -> Utterances:
        """Some of the utterances, in the order of ``rows``."""
        return Utterances(
            tuple(self.pcm[i] for i in rows),
            tuple(self.texts[i] for i in rows),
            tuple(self.speakers[i] for i in rows),
            tuple(self.names[i] for i in rows),
        )


def an4_splits(data_dir: str | os.PathLike[str], speakers: int = 8, seed: int = 0) -> dict[str, Utterances]:
    """Training, calibration and test utterances, of different speakers each.

    Args:
      data_dir: the folder that holds ``an4/``.
      speakers: how many of the training speakers are kept for calibration, drawn by the seed.
      seed: of that draw.

    Returns:
      ``"train"``, ``"calibration"`` and ``"test"``.

    Raises:
      ValueError: a file is missing or damaged, or there are not more training speakers than ``speakers``.
      ImportError: soundfile is not installed.
    """
    whole = read_an4(data_dir, "train")
    known = sorted(set(whole.speakers))
    if not 0 < speakers < len(known):
        raise ValueError(f"of {len(known)} training speakers 1 to {len(known) - 1} can be kept for calibration, got {speakers}")
    held = set(np.random.default_rng(seed).permutation(known)[:speakers].tolist())
    rows: dict[bool, list[int]] = {False: [], True: []}
    for i, speaker in enumerate(whole.speakers):
        rows[speaker in held].append(i)
    return {"train": whole.take(rows[False]), "calibration": whole.take(rows[True]), "test": read_an4(data_dir, "test")}


def read_an4(data_dir: str | os.PathLike[str], split: str) -> Utterances:
    """Utterances of one of the official splits, in the order of the table.

    A warning names utterances in which more than 1 % of the samples lie at the ends of the range (clipped).

    Args:
      data_dir: the folder that holds ``an4/an4_SPLIT.opus`` and ``an4/an4_SPLIT.tsv``, with the columns utt, speaker, start
        and length (in samples), and text.
      split: ``"train"`` or ``"test"``.

    Raises:
      ValueError: an unknown split; a file is missing or damaged, or is not 16 kHz mono; an utterance is empty, has no
        text, or lies outside of the sound, or the sound has utterances that the table lacks.
      ImportError: soundfile is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = Path(data_dir) / "an4"
    table, sound = folder / f"an4_{split}.tsv", folder / f"an4_{split}.opus"
    for path in (table, sound):
        if not path.is_file():
            raise ValueError(f"{path} is missing: it is part of the AN4 data")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows:
        raise ValueError(f"{table} lists no utterances")
    pcm = _read_sound(sound)
    clips, end = [], 0
    for i, row in enumerate(rows):
        if any(row.get(field) is None for field in _FIELDS):
            raise ValueError(f"{table}: utterance {i} lacks one of {', '.join(_FIELDS)}")
        name, start, length = row["utt"], row["start"], row["length"]
        if not (start.isdecimal() and length.isdecimal() and int(length)):
            raise ValueError(f"{table}: utterance {name!r} begins at {start!r} and has length {length!r}: it is empty")
        if not row["text"].strip():
            raise ValueError(f"{table}: utterance {name!r} has no text")
        if int(start) != end or end + int(length) > len(pcm):
            raise ValueError(
                f"{table}: utterance {name!r} has samples {start} to {int(start) + int(length)}, but the one before ends at {end} "
                f"and {sound.name} at {len(pcm)}: sound and table do not belong together"
            )
        clips.append(pcm[end : end + int(length)])
        end += int(length)
    if end != len(pcm):
        raise ValueError(f"{table}: its {len(rows)} utterances have {end} samples, {sound.name} has {len(pcm)}")
    names = tuple(row["utt"] for row in rows)
    clipped = [n for n, c in zip(names, clips, strict=True) if np.mean((c == 32767) | (c == -32768)) > _CLIPPED]
    if clipped:
        warnings.warn(f"{sound}: clipped utterances: {', '.join(clipped[:5])}, {len(clipped)} in all", stacklevel=2)
    return Utterances(tuple(clips), tuple(row["text"].strip() for row in rows), tuple(row["speaker"] for row in rows), names)


def _read_sound(path: Path) -> np.ndarray:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError('reading speech needs soundfile: pip install "bqjax[speech]"') from error
    try:
        pcm, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path} is no readable sound file: {error}") from error
    if rate != SAMPLE_RATE or pcm.shape[1] != 1:
        raise ValueError(
            f"{path} must be {SAMPLE_RATE} Hz mono, got {rate} Hz with {pcm.shape[1]} channels: "
            f"convert it, for instance with `ffmpeg -i IN -ar {SAMPLE_RATE} -ac 1 OUT`"
        )
    return pcm[:, 0]
