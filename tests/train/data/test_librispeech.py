"""LibriSpeech's utterances from a data source like that of TensorFlow Datasets."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from train.data.librispeech import librispeech_splits
from train.speech.config import SpeechConfig
from train.speech.loop import speech_data

N = 6


def examples(split):
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"{split}-{i}".encode(),
            "text": b"it's late",
            "speaker_id": np.int64(i % 2),
            "speech": rng.integers(-3000, 3000, 4000 + 100 * i),
        }
        for i in reversed(range(N))
    ]


@pytest.fixture
def sources(monkeypatch):
    """By split; what a test puts there instead is what TensorFlow Datasets gives."""
    found = {split: examples(split) for split in ("train_clean100", "dev_clean", "test_clean")}
    module = types.ModuleType("tensorflow_datasets")

    def data_source(name, *, split, data_dir, download):
        assert (name, download) == ("librispeech", False)
        if isinstance(found[split], Exception):
            raise found[split]
        return found[split]

    module.data_source = data_source
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return found


def test_splits(sources, tmp_path):
    found = librispeech_splits(tmp_path, 4, seed=1)
    assert [len(found[name].texts) for name in ("train", "calibration", "test")] == [4, N, N]
    assert found["test"].names == tuple(f"test_clean-{i}" for i in range(N))
    assert [len(pcm) for pcm in found["test"].pcm] == [4000 + 100 * i for i in range(N)]
    assert found["test"].pcm[0].dtype == np.int16
    np.testing.assert_array_equal(found["test"].pcm[2], sources["test_clean"][N - 1 - 2]["speech"])
    assert set(found["test"].texts) == {"IT'S LATE"}
    assert found["test"].speakers == ("0", "1") * 3
    assert list(found["train"].names) == sorted(found["train"].names)
    assert librispeech_splits(tmp_path, 4, seed=1)["train"].names == found["train"].names
    assert len(librispeech_splits(tmp_path)["train"].texts) == N


def test_features_by_config(sources, tmp_path):
    config = SpeechConfig(dataset="librispeech", n_mels=12, train_utterances=3, buckets=1)
    found = speech_data(config, tmp_path)
    assert [len(found[name].texts) for name in ("train", "calibration", "test")] == [3, N, N]
    assert found["train"].inputs[0].shape[1] == 12
    with pytest.raises(ValueError, match="must name a folder with tfds/librispeech"):
        speech_data(config, None)
    with pytest.raises(ValueError, match="dataset must be one of an4, librispeech, got 'timit'"):
        SpeechConfig(dataset="timit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ValueError("not found"), r"no LibriSpeech \(train_clean100\) .*download_and_prepare\(\): not found"),
        ([{**examples("x")[0], "speech": np.array([40_000])}], "'x-5': samples must be .* of 16 bits"),
        ([{**examples("x")[0], "speech": np.array([], np.int64)}], r"at least one, got int64 \(0,\)"),
        ([{**examples("x")[0], "text": b" "}], "'x-5' has no text"),
    ],
)
def test_what_is_not_as_it_should_be(sources, tmp_path, change, message):
    sources["train_clean100"] = change
    with pytest.raises(ValueError, match=message):
        librispeech_splits(tmp_path)
    sources["train_clean100"] = examples("x")
    with pytest.raises(ValueError, match="train_utterances is 7, but train_clean100 has 6 utterances"):
        librispeech_splits(tmp_path, 7)


def test_without_tensorflow_datasets(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'needs tensorflow_datasets.*pip install "bqjax\[train\]"'):
        librispeech_splits(tmp_path)
