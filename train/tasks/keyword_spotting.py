"""The published keyword-spotting transformer KWT-1 as a task: its weights out of a ``.tflite`` file, its front end, and clips."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_load, nnx_params
from bqjax.core.classification import batches, classification_task
from bqjax.core.task import Task
from bqjax.models.audio import MfccConfig, mfcc
from bqjax.models.transformer.classifiers import KWT
from bqjax.tflite.format.graph import Graph, parse
from train.tasks.speech_commands import SpeechClips, read_speech

__all__ = ["KWT_FEATURES", "kwt_task", "load_kwt"]

KWT_FEATURES = MfccConfig(n_mels=80, upper_hz=7_600.0, n_coefficients=40, lowest_bin=True)
"""The front end that the file holds as constants ``speech_features/*``: they are no weights of the network."""

BATCH_SIZE = 40
_ATTENTION = ("query", "key", "value", "output")


def load_kwt(path: str | os.PathLike[str]) -> KWT:
    """KWT-1 with the weights of a float32 ``.tflite`` file.

    Args:
      path: the file, whose tensors have the names of Keras's layers in the order in which they were made: six dense layers and two
        norms a block.

    Raises:
      ValueError: the file is missing or damaged, or its tensors do not fit KWT-1; the message lists those.
      ImportError: ai-edge-litert is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    model = nnx.eval_shape(lambda: KWT(rngs=nnx.Rngs(0)))
    return nnx_load(model, _tensors(parse(path.read_bytes())), str, source=str(path))


def _tensors(graph: Graph) -> dict[str, np.ndarray]:
    """The network's weights by the names and in the layouts of :class:`~bqjax.models.transformer.classifiers.KWT`."""
    found: dict[str, np.ndarray] = {}
    for operator in graph.operators:
        if operator.kind != "FULLY_CONNECTED":
            continue
        kernel = graph.tensors[operator.inputs[1]]
        if kernel.data is None or "speech_features" in kernel.name:
            continue
        dense = re.search(r"dense(?:_(\d+))?/", kernel.name)
        if dense is None:
            raise ValueError(f"the kernel {kernel.name!r} is of no dense layer of KWT")
        name = _dense(int(dense[1] or 0))
        found[f"{name}/kernel"] = kernel.data.T
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            bias = graph.tensors[operator.inputs[2]].data
            if bias is not None:
                found[f"{name}/bias"] = bias
    for tensor in graph.tensors:
        if tensor.data is None:
            continue
        norm = re.search(r"layer_normalization(?:_(\d+))?/(gamma|beta)$", tensor.name)
        if norm is not None:
            block, which = divmod(int(norm[1] or 0), 2)
            place = f"layers/blocks/{block}/{('attention_norm', 'mlp_norm')[which]}"
            found[f"{place}/{'scale' if norm[2] == 'gamma' else 'bias'}"] = tensor.data
        elif tensor.name in ("class_emb", "pos_emb"):
            found["token" if tensor.name == "class_emb" else "positions"] = tensor.data
    return found


def _dense(number: int) -> str:
    """The module of Keras's dense layer of a number."""
    if number == 0:
        return "input"
    block, which = divmod(number - 1, 6)
    if block == 12:
        return "head"
    return f"layers/blocks/{block}/" + (f"attention/{_ATTENTION[which]}" if which < 4 else f"mlp/{('up', 'down')[which - 4]}")


def kwt_task(data_dir: str | os.PathLike[str]) -> Task:
    """KWT-1 with calibration and test clips of disjoint speakers.

    The splits hold 8 of the network's 12 classes; accuracy takes the argmax over all.

    Args:
      data_dir: the folder with ``kwt1/`` (``kwt1_float32.tflite`` and ``labels.txt``) and ``speech/``.

    Raises:
      ValueError: a file is missing or damaged, or a word is none of the network's.
      ImportError: soundfile or ai-edge-litert is not installed.
    """
    data_dir = Path(data_dir)
    model = load_kwt(data_dir / "kwt1" / "kwt1_float32.tflite")
    words = (data_dir / "kwt1" / "labels.txt").read_text(encoding="utf-8").split()
    made: dict[str, list[Any]] = {}
    for split in ("calibration", "test"):
        clips = read_speech(data_dir / "speech", split)
        made[split] = batches(_features(clips.pcm), _labels(clips, words), BATCH_SIZE)
    return classification_task(
        nnx_apply(model),
        nnx_params(model),
        made["calibration"],
        made["test"],
        name="KWT-1, Speech Commands",
        calibration_name="speech_calibration",
        test_name="speech_test",
    )


def _labels(clips: SpeechClips, words: list[str]) -> np.ndarray:
    """Class indices of clips in the network's order of words."""
    if missing := sorted({clips.names[i] for i in clips.labels} - set(words)):
        raise ValueError(f"the network has no class for {', '.join(missing)}: its labels are {', '.join(words)}")
    return np.asarray([words.index(clips.names[i]) for i in clips.labels], np.int32)


def _features(pcm: np.ndarray) -> np.ndarray:
    """MFCCs ``[n, 98, 40]`` of clips ``[n, 16000]`` int16, in pieces of bounded memory."""
    front_end = jax.jit(lambda clips: mfcc(clips, KWT_FEATURES))
    return np.concatenate([np.asarray(front_end(pcm[i : i + BATCH_SIZE])) for i in range(0, len(pcm), BATCH_SIZE)])
