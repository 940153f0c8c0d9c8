"""KWT-1 out of its ``.tflite`` file: the published counts, and its front end against the file's own constants."""

from __future__ import annotations

import numpy as np
import pytest

from bqjax.core.scoring import score_on
from bqjax.models.audio import dct_matrix, hann_window, mel_filterbank
from bqjax.tflite.format.graph import parse
from train.tasks import kwt_task
from train.tasks.keyword_spotting import KWT_FEATURES, load_kwt


def test_317_of_320_calibration_clips_are_right(data_dir):
    """By LiteRT, see the data's README; 591 of 600 test clips is what its tables begin with."""
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("soundfile")
    task = kwt_task(data_dir)
    assert round(320 * score_on(task, task.params, task.calibration).metrics["accuracy"]) == 317


def test_the_front_end_is_that_of_the_file(data_dir):
    pytest.importorskip("ai_edge_litert")
    graph = parse((data_dir / "kwt1" / "kwt1_float32.tflite").read_bytes())
    found = [t.data for t in graph.tensors if t.data is not None and t.name.startswith("speech_features")]
    for expected in (
        hann_window(KWT_FEATURES.frame_length),
        mel_filterbank(KWT_FEATURES)[:244].T,  # bins up to 7.6 kHz
        dct_matrix(KWT_FEATURES.n_coefficients, KWT_FEATURES.n_mels),
    ):
        assert any(x.shape == expected.shape and np.abs(x - expected).max() < 1e-5 for x in found)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*kwt1.tflite"):
        load_kwt(tmp_path / "kwt1.tflite")
