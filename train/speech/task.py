"""A trained speech network as a task: what ``bqjax compress --config`` and ``bqjax sweep --config`` work on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_load, nnx_params
from bqjax.adapters.safetensors import read_weights
from bqjax.core.task import Task
from bqjax.models.ctc import ctc_outputs, ctc_predict, ctc_score
from bqjax.models.transcripts import ENGLISH
from train.data.utterances import Speech, batches
from train.speech.config import SpeechConfig
from train.speech.loop import speech_data

__all__ = ["an4_task", "load_run"]


def load_run(run: str | os.PathLike[str]) -> tuple[SpeechConfig, Any]:
    """Config and last network, in evaluation mode, of a run of :func:`train.speech.loop.run_speech` that has ended.

    Raises:
      ValueError: the folder has no ``config.json`` and ``model.safetensors`` of such a run, or they do not fit.
    """
    path, weights = Path(run) / "config.json", Path(run) / "model.safetensors"
    if not path.is_file() or not weights.is_file():
        raise ValueError(f"{run} has no config.json and model.safetensors: train with configs/deepspeech2_an4.py first")
    try:
        config = SpeechConfig(**{name: _tuples(value) for name, value in json.loads(path.read_text()).items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no config of speech recognition: {error}") from error
    model = nnx_load(config.network(), read_weights(weights), str, source=str(weights))
    return config, nnx.view(model, use_running_average=True, deterministic=True)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def an4_task(run: str | os.PathLike[str], data_dir: Path | None) -> Task:
    """The network of a run with AN4's calibration utterances, of training speakers that it was not trained on, and the test set.

    Its metric is ``-errors``, minus the word error rate by greedy decoding; a search ranks by ``-loss``, the CTC loss a word.

    Args:
      run: folder of the run.
      data_dir: the folder that holds ``an4/``.

    Raises:
      ValueError: see :func:`load_run` and :func:`train.speech.loop.speech_data`.
    """
    config, model = load_run(run)
    data = speech_data(config, data_dir)
    apply, separator = nnx_apply(model), ENGLISH.encode(" ")[0]
    return Task(
        name="DeepSpeech 2, AN4",
        params=nnx_params(model),
        score=ctc_score(apply, separator=separator),
        predict=ctc_predict(apply, separator=separator),
        outputs=ctc_outputs(apply),
        calibration=_batches(data["calibration"], config.batch_size),
        test=_batches(data["test"], config.batch_size),
        metric="-errors",
        rank_by="-loss",
        calibration_name="AN4 utterances of held-out training speakers",
        test_name="AN4 test set",
    )


def _batches(speech: Speech, size: int) -> list[dict[str, Any]]:
    return [{name: jnp.asarray(value) for name, value in batch._asdict().items()} for _, batch in batches(speech, size, None)]
