"""AN4: what is read, and that nothing odd about sound or table goes through in silence."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile

from train.data.an4 import an4_splits, read_an4

LENGTHS = (4000, 6400, 3200)


def write(folder, split="train", *, rate=16_000, channels=1, change=None, extra=0, amplitude=3000):
    """Three utterances of two speakers; ``change`` alters the table's rows."""
    folder = folder / "an4"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    pcm = np.clip(rng.normal(0, amplitude, (sum(LENGTHS) + extra, channels)), -32768, 32767).astype(np.int16)
    # Lossless, under the ending of the real files: what a sound file is follows from its content.
    soundfile.write(folder / f"an4_{split}.opus", pcm, rate, format="FLAC", subtype="PCM_16")
    starts = np.cumsum((0, *LENGTHS[:-1]))
    rows = [
        [f"u{i}-{split}", f"{split}{i % 2}", str(s), str(n), t]
        for i, (s, n, t) in enumerate(zip(starts, LENGTHS, ("YES", "A B", "GO"), strict=True))
    ]
    rows = change(rows) if change else rows
    (folder / f"an4_{split}.tsv").write_text(
        "\n".join("\t".join(r) for r in [["utt", "speaker", "start", "length", "text"], *rows])
    )
    return pcm


def test_reads_utterances(tmp_path):
    pcm = write(tmp_path)
    found = read_an4(tmp_path, "train")
    assert found.texts == ("YES", "A B", "GO")
    assert found.speakers == ("train0", "train1", "train0")
    assert [len(clip) for clip in found.pcm] == list(LENGTHS)
    np.testing.assert_array_equal(np.concatenate(found.pcm), pcm[:, 0])
    assert found.take([2, 0]).names == ("u2-train", "u0-train")


def test_calibration_speakers_are_not_trained_on(tmp_path):
    write(tmp_path)
    write(tmp_path, "test")
    splits = an4_splits(tmp_path, speakers=1)
    speakers = {name: set(part.speakers) for name, part in splits.items()}
    assert speakers["train"] | speakers["calibration"] == {"train0", "train1"}
    assert not speakers["train"] & speakers["calibration"]
    assert speakers["test"] == {"test0", "test1"}
    for number in (0, 2):
        with pytest.raises(ValueError, match=f"of 2 training speakers 1 to 1 can be kept for calibration, got {number}"):
            an4_splits(tmp_path, speakers=number)


def field(row, column, value):
    def change(rows):
        rows[row][column] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 8_000}, "must be 16000 Hz mono, got 8000 Hz with 1 channels: convert it"),
        ({"channels": 2}, "got 16000 Hz with 2 channels"),
        ({"change": lambda rows: []}, "lists no utterances"),
        ({"change": lambda rows: rows[:2]}, "its 2 utterances have 10400 samples, an4_train.opus has 13600"),
        ({"extra": 5}, "its 3 utterances have 13600 samples, an4_train.opus has 13605"),
        ({"change": field(1, 3, "0")}, "'u1-train' begins at '4000' and has length '0': it is empty"),
        ({"change": field(1, 3, "-3")}, "has length '-3'"),
        ({"change": field(2, 3, "9999")}, "'u2-train' has samples 10400 to 20399, but .* sound and table do not belong together"),
        ({"change": field(1, 2, "3999")}, "the one before ends at 4000"),
        ({"change": field(0, 4, "  ")}, "'u0-train' has no text"),
        ({"change": lambda rows: [row[:4] for row in rows]}, "utterance 0 lacks one of utt, speaker"),
    ],
)
def test_what_does_not_fit(tmp_path, arguments, message):
    write(tmp_path, **arguments)
    with pytest.raises(ValueError, match=message):
        read_an4(tmp_path, "train")


def test_clipped_sound_is_named(tmp_path):
    write(tmp_path, amplitude=40_000)
    with pytest.warns(UserWarning, match=r"clipped utterances: u0-train, u1-train, u2-train, 3 in all"):
        read_an4(tmp_path, "train")


def test_files_missing_or_damaged(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split must be one of train, test"):
        read_an4(tmp_path, "dev")
    with pytest.raises(ValueError, match=r"an4_train\.tsv is missing"):
        read_an4(tmp_path, "train")
    write(tmp_path)
    (tmp_path / "an4" / "an4_train.opus").write_bytes(b"OggS, but not really")
    with pytest.raises(ValueError, match="is no readable sound file"):
        read_an4(tmp_path, "train")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"bqjax\[speech\]"):
        read_an4(tmp_path, "train")


@pytest.mark.slow  # decodes an hour of speech; the reader's rules are held above
@pytest.mark.data
def test_the_official_split(data_dir):
    splits = an4_splits(data_dir)
    assert [len(splits[name].pcm) for name in ("train", "calibration", "test")] == [771, 99, 130]
    assert sum(len(text.split()) for text in splits["test"].texts) == 773
    assert sum(map(len, splits["test"].texts)) == 2565
    assert len(set(splits["test"].speakers)) == 10
