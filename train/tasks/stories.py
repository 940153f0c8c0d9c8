"""A trained language model as a task: stories in tokens, and the cross-entropy of the next one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bqjax.adapters.safetensors import read_weights
from bqjax.core.task import Task
from bqjax.models.transformer.pretrained import pretrained

__all__ = ["stories_task"]

BATCH_SIZE = 20


def stories_task(data_dir: str | os.PathLike[str], *, n_calibration: int | None = None) -> Task:
    """A Llama of 260,032 weights with 200 stories to calibrate on and 400 others to report on.

    The metric is ``nats``, the cross-entropy of a token; errors are paired by story.

    Args:
      data_dir: the folder with ``lm/stories260k/``: a folder of Hugging Face, and the stories' tokens ``tokens.npz``.
      n_calibration: stories to calibrate on, the first ones; None takes all.

    Raises:
      ValueError: a file is missing or damaged, or there are not so many stories.
    """
    folder = Path(data_dir) / "lm" / "stories260k"
    for name in ("config.json", "model.safetensors", "tokens.npz"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: it is part of stories260k")
    params = read_weights(folder / "model.safetensors")
    network = pretrained(json.loads((folder / "config.json").read_text(encoding="utf-8")), list(params))
    with np.load(folder / "tokens.npz") as file:
        stories = {split: (file[split], file[f"{split}_length"]) for split in ("calibration", "test")}
    most = len(stories["calibration"][0])
    n_calibration = most if n_calibration is None else n_calibration
    if not 1 <= n_calibration <= most:
        raise ValueError(f"n_calibration must be from 1 to {most}, got {n_calibration}")
    return Task(
        name="stories260k",
        params=params,
        score=network.score,
        predict=network.predict,
        outputs=network.outputs,
        calibration=_batches(*(x[:n_calibration] for x in stories["calibration"])),
        test=_batches(*stories["test"]),
        metric="-nats",
        rank_by="-nats",
        calibration_name=f"{n_calibration} stories",
        test_name=f"{len(stories['test'][0])} other stories",
    )


def _batches(tokens: np.ndarray, lengths: np.ndarray) -> list[dict[str, Any]]:
    """Batches of stories; rows that fill up the last one are all padding."""
    mask = np.arange(tokens.shape[1])[None] < lengths[:, None]
    rows = -(-len(tokens) // BATCH_SIZE) * BATCH_SIZE
    whole = {name: np.pad(x, ((0, rows - len(x)), (0, 0))) for name, x in (("tokens", tokens.astype(np.int32)), ("mask", mask))}
    return [{name: x[i : i + BATCH_SIZE] for name, x in whole.items()} for i in range(0, rows, BATCH_SIZE)]
