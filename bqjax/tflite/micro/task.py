"""Models for TFLM as tasks: compressed files are what TFLM runs, and what LiteRT says of their plain twins is reported."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bqjax.core.files import atomic_write
from bqjax.core.leaves import decode, is_compressed
from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.examples import Examples
from bqjax.tflite.format.model import Model, parse_model, rewritten
from bqjax.tflite.micro.choice import Limits
from bqjax.tflite.micro.file import micro_content, plain_twin, read_micro
from bqjax.tflite.micro.target import MicroTarget
from bqjax.tflite.network import litert_predict, litert_score
from bqjax.tflite.task import TFLiteStorage, TFLiteTask, tflite_task

__all__ = ["MicroStorage", "micro_search", "micro_task"]


@dataclass(frozen=True)
class MicroStorage:
    """Files for TFLM; trees have the structure of ``model.params``.

    Attributes:
      model: the original.
      keep_names: see :func:`bqjax.tflite.micro.micro_content`.
      limits: what decoding may cost.
      original_name: what tables call the original.
    """

    model: Model
    keep_names: bool = False
    limits: Limits = field(default_factory=Limits)
    original_name: str = "the .tflite file"

    def original(self, params: Any) -> bytes:
        """The model's file."""
        del params
        return self.model.content

    def n_weights(self, params: Any) -> int:
        """Weights of the whole model, see :class:`bqjax.tflite.TFLiteStorage`."""
        return TFLiteStorage(self.model).n_weights(params)

    def save(
        self,
        path: str | os.PathLike[str],
        tree: Any,
        *,
        info: Any = None,
        coder: str = "auto",
        force: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Writes the file. It has room for neither reports nor metadata, and its encodings are those of fewest bytes.

        Raises:
          ValueError: the file exists, or TFLM cannot run the model.
        """
        del info, coder, metadata
        plain = {n: {f: np.asarray(decode(v) if is_compressed(v) else v) for f, v in layer.items()} for n, layer in tree.items()}
        content = micro_content(rewritten(self.model, plain), keep_names=self.keep_names, limits=self.limits)
        with atomic_write(path, force=force) as file:
            file.write(content)
        return Path(path)

    def load(self, path: str | os.PathLike[str], like: Any) -> Any:
        """Parameters of the plain twin, by the original's names."""
        del like
        found = parse_model(read_micro(path).twin).params
        return dict(zip(self.model.params, found.values(), strict=True))


def micro_task(
    model_path: str | os.PathLike[str],
    examples: Examples | str | os.PathLike[str],
    *,
    keep_names: bool = False,
    limits: Limits | None = None,
    **settings: Any,
) -> TFLiteTask:
    """As :func:`bqjax.tflite.tflite_task`, for files that TFLM runs.

    Args:
      model_path, examples: the model and its examples.
      keep_names: see :func:`bqjax.tflite.micro.micro_content`.
      limits: what decoding may cost.
      settings: of :func:`bqjax.tflite.tflite_task`.

    Raises:
      ValueError: as :func:`bqjax.tflite.tflite_task`; a network that TFLM has no kernels for.
    """
    limits = limits or Limits()
    task = tflite_task(model_path, examples, **settings)
    storage = task.storage
    if not isinstance(storage, TFLiteStorage):
        raise TypeError("a task of a .tflite model has no storage of its kind")
    model = storage.model
    try:
        micro_content(model.content, keep_names=keep_names, limits=limits)
    except ValueError as error:
        raise ValueError(f"{os.fspath(model_path)}: {error}") from error
    predict = litert_predict(model, partial(plain_twin, keep_names=keep_names))
    return dataclasses.replace(
        task,
        storage=MicroStorage(model, keep_names, limits),
        predict=predict,
        score=litert_score(predict),
        test_name="the test half, by LiteRT with its default kernels on the plain twin",
    )


def micro_search(max_drop: float, limits: Limits | None = None) -> QuantizedConfig:
    """How codes are searched for such files: at most ``max_drop`` (a share) of the predictions on the search half change."""
    arena = None if limits is None else limits.arena
    return QuantizedConfig(max_drop=max_drop, layer_drop=max(max_drop, 0.01), target=MicroTarget(arena=arena))
