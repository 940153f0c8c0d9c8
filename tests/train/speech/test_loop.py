"""Training of speech recognition on made-up tones: batches, learning, and a run that was interrupted."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile

from bqjax import codec
from bqjax.adapters.safetensors import read_weights
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.models.transcripts import ENGLISH, Alphabet
from train.data.an4 import Utterances
from train.data.utterances import batches, bucket_frames, features_of
from train.main import main
from train.speech.config import SpeechConfig
from train.speech.loop import run_speech
from train.speech.task import an4_task, load_run
from train.speech.transcribe import main as transcribe

CONFIG = SpeechConfig(
    n_mels=12,
    channels=(2,),
    kernels=((3, 3),),
    strides=((2, 2),),
    layers=1,
    cells=8,
    epochs=3,
    batch_size=4,
    buckets=1,
    learning_rate=1e-2,
    frequency_width=3,
    calibration_speakers=1,
    beam_width=2,
)


def tones(texts, rng):
    """A tone a letter, 100 ms each."""
    clips = []
    for text in texts:
        t = np.arange(1600) / 16_000
        parts = [np.sin(2 * np.pi * (400 + 700 * "AB ".index(c)) * t) for c in text]
        clips.append((8000 * np.concatenate(parts) + rng.normal(0, 50, 1600 * len(text))).astype(np.int16))
    return clips


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "an4").mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 10), ("test", 3)):
        texts = ["".join(rng.choice(list("AB"), rng.integers(2, 5))) for _ in range(n)]
        clips = tones(texts, rng)
        soundfile.write(folder / "an4" / f"an4_{split}.opus", np.concatenate(clips), 16_000, format="FLAC", subtype="PCM_16")
        starts = np.cumsum([0, *map(len, clips[:-1])])
        rows = [f"u{i}\t{split}{i % 2}\t{s}\t{len(c)}\t{x}" for i, (s, c, x) in enumerate(zip(starts, clips, texts, strict=True))]
        (folder / "an4" / f"an4_{split}.tsv").write_text("\n".join(["utt\tspeaker\tstart\tlength\ttext", *rows]))
    return folder


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def utterances(lengths, texts=None):
    rng = np.random.default_rng(0)
    clips = tuple(rng.integers(-900, 900, n).astype(np.int16) for n in lengths)
    names = tuple(f"u{i}" for i in range(len(lengths)))
    return Utterances(clips, tuple(texts or ["A"] * len(lengths)), names, names)


def test_buckets_hold_every_utterance():
    frames = np.random.default_rng(0).integers(30, 600, 200)
    shapes = bucket_frames(frames, 4)
    assert shapes == sorted(set(shapes))
    assert len(shapes) == 4
    assert shapes[-1] >= frames.max() > shapes[-1] - 50
    assert all(s % 50 == 0 for s in shapes)
    assert bucket_frames(np.array([60, 70]), 4) == [100]


def test_features_do_not_depend_on_the_bucket():
    clips = utterances((5000, 9000))
    front_end = CONFIG.front_end
    narrow, wide = (features_of(clips, front_end, ENGLISH, shapes) for shapes in ((50, 100), (150,)))
    assert narrow.padded.tolist() == [50, 100]
    assert wide.padded.tolist() == [150, 150]
    for a, b, n in zip(narrow.inputs, wide.inputs, narrow.frames, strict=True):
        assert a.shape == (n, 12)
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert features_of(clips, front_end, ENGLISH, (30,)).padded.tolist() == [30, 100]


@pytest.mark.parametrize("ascending", [False, True])
def test_batches_hold_each_utterance_once(ascending):
    speech = features_of(
        utterances((2000, 9000, 2100, 2500, 9100), ["A", "BA", "C", "D", "E"]), CONFIG.front_end, ENGLISH, (50, 100)
    )
    seen = []
    for rows, batch in batches(speech, 2, np.random.default_rng(0), ascending=ascending):
        assert batch.inputs.shape == (2, speech.padded[rows[0]], 12)
        assert batch.mask.sum() == len(rows)
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(batch.inputs[i, : batch.lengths[i]], speech.inputs[row])
            assert ENGLISH.decode(batch.labels[i, : batch.label_lengths[i]].tolist()) == speech.texts[row]
        seen.append(rows.tolist())
    assert sorted(row for rows in seen for row in rows) == [0, 1, 2, 3, 4]
    if ascending:
        assert sorted(row for rows in seen[:2] for row in rows) == [0, 2, 3]


def test_utterances_that_do_not_fit():
    with pytest.raises(ValueError, match="'u1' is shorter than one frame of 400 samples: leave it out"):
        features_of(utterances((5000, 300)), CONFIG.front_end, ENGLISH)
    with pytest.raises(ValueError, match="utterance 'u0': 'A' has the characters 'A', which the alphabet does not"):
        features_of(utterances((5000,)), CONFIG.front_end, Alphabet("XY"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Folder and figures of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    return folder, run_speech(CONFIG, folder, data, say=lambda line: None)


def test_learns(data, whole):
    folder, figures = whole
    records = lines(folder)
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert set(figures) == {"WER", "CER", "WER, beam", "CER, beam"}
    assert {name: array.shape for name, array in read_weights(folder / "model.safetensors").items()}.items() >= {
        "rnn/0/forward/recurrent/kernel": (8, 24),
        "rnn/0/forward/norm/mean": (24,),
        "output/bias": (29,),
    }.items()

    with pytest.raises(ValueError, match=r"layers is 1 there and 2 now"):
        run_speech(dataclasses.replace(CONFIG, layers=2), folder, data)


def test_utterances_too_short_for_their_transcripts(data, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, strides=((50, 2),), kernels=((51, 3),), beam_width=0)
    with pytest.raises(ValueError, match="no training utterance has enough frames for its transcript: use smaller strides"):
        run_speech(config, tmp_path, data)


def test_command_line_without_data(tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text("from train.speech.config import SpeechConfig\nconfig = SpeechConfig()\n")
    assert main(["--config", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "--data-dir is missing: it must name a folder with an4" in capsys.readouterr().err
    assert main(["--config", str(path), "--distributed", "--data-dir", str(tmp_path)]) == 2
    assert "leave --distributed out" in capsys.readouterr().err
    assert main(["--config", str(path), "--data-dir", str(tmp_path), "--cells", "4"]) == 2
    assert "an4_train.tsv is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"time_masks": -1}, "time_masks must be at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"warmup": 1.0}, "warmup is a share"),
        ({"train_utterances": 0}, "train_utterances must be at least 1"),
    ],
)
def test_fields(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_the_task_scores_what_training_reported(data, whole, tmp_path, capsys):
    folder, figures = whole
    task = an4_task(folder, data)
    results = [jax.jit(task.score)(task.params, batch) for batch in task.test]
    errors, count = (float(sum(x)) for x in zip(*((sums["errors"], n) for sums, n in results), strict=True))
    assert count == 3  # a word an utterance
    assert errors / count == pytest.approx(figures["WER"])
    said = [jax.jit(task.predict)(task.params, batch) for batch in task.test]
    assert sum(float((s.sums["errors"] * s.counted).sum()) for s in said) == errors
    file = tmp_path / "small.bq.safetensors"
    codec.save(file, bin_and_quant(task.params, gaussian_bins(task.params, 8)))
    flags = ["--run", str(folder), "--data-dir", str(data), "--files", str(file), "--beam-width", "2"]
    assert transcribe(flags) == 0
    own, small = capsys.readouterr().out.splitlines()
    assert own == "float32: " + ", ".join(f"{name} {value:.2%}" for name, value in figures.items())
    assert small.startswith(f"{file}: WER ")
    codec.save(file, {"output": {"bias": np.zeros(29)}}, force=True)
    assert transcribe(flags) == 2
    assert "is of another network than the run: 'conv/0/conv/kernel' differs" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"pages": 3}')
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="is no config of speech recognition"):
        load_run(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"train with configs/deepspeech2_an4\.py first"):
        load_run(tmp_path)
