"""Bin & Quant on the integer codes of a ``.tflite`` model, behind the interface of :mod:`bqjax.methods.base`."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bqjax.core.journal import digest
from bqjax.core.kept import kept_or_measured
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.methods.base import Compressed, Method, Uncompressed
from bqjax.methods.baselines.methods import KMeans
from bqjax.tflite.codes.layer_stats import Measured
from bqjax.tflite.codes.search import QuantizedConfig, measure_layers, search_codes
from bqjax.tflite.container import exact
from bqjax.tflite.network import unmeasured
from bqjax.tflite.task import TFLiteTask

__all__ = ["CODES", "IntegerBinAndQuant", "beside"]

CODES: tuple[Rule[Any], ...] = (Rule("*/codes"),)
"""Rules by which methods for float weights take the integer codes of a :func:`bqjax.tflite.tflite_task`."""

# What was measured of the layers of a task, by all that it depends on: methods of one task share it.
_MEASURED: weakref.WeakKeyDictionary[Task, dict[str, dict[str, Measured]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class IntegerBinAndQuant:
    """Entropy-constrained scalar quantization of integer codes with error feedback (see :mod:`bqjax.tflite.codes.search`).

    Attributes:
      search: how codes are searched.
      positions, draws, examples: see :func:`bqjax.tflite.codes.measure_layers`.
      label: of the row.
    """

    search: QuantizedConfig = field(default_factory=QuantizedConfig)
    positions: int = 1024
    draws: int = 1
    examples: int = 10
    label: str = "B&Q, entropy-constrained"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        """New codes and biases of the layers that the search accepts.

        Measurements of layers are kept beside ``state_path``, where other methods of the task find them.

        Raises:
          ValueError: the task is none of :func:`bqjax.tflite.tflite_task`.
        """
        if not isinstance(task, TFLiteTask):
            raise ValueError(f"{self.label}: task {task.name!r} has no integer codes: make it by tflite_task")
        measured = self._measured(task, key, state_path, progress)
        params, info = search_codes(task.network, task.calibration, measured, self.search, state_path=state_path, progress=progress)
        tree: dict[str, dict[str, Any]] = {name: dict(layer) for name, layer in task.params.items()}
        for layer in info.layers:
            for name in (layer.name, *task.network.tied.get(layer.name, ())) if layer.accepted else ():
                new = params[name]
                tree[name] = {**new, "codes": exact(np.asarray(new["codes"]))}
        return Compressed(tree, info)

    def _measured(self, task: TFLiteTask, key: jax.Array, state_path: str | None, progress: Progress | None) -> dict[str, Measured]:
        if not task.measurable:
            return unmeasured(task.network)
        batches = list(task.calibration)
        chosen = {"positions": self.positions, "draws": self.draws, "examples": self.examples}
        settings = {name: str(value) for name, value in chosen.items()}
        depends = {"params": digest(task.params), "batches": digest(batches), "key": digest(key), **settings}
        name = hashlib.sha256(repr(sorted(depends.items())).encode()).hexdigest()[:12]
        known = _MEASURED.setdefault(task, {})
        if name not in known:
            path = None if state_path is None else Path(state_path).with_name(f"layers-{name}.safetensors")
            measure: Callable[[], dict[str, Measured]] = lambda: measure_layers(  # noqa: E731
                task.network, batches, key=key, **chosen, progress=progress
            )
            known[name] = kept_or_measured(path, depends, Measured, measure)
        return known[name]


def beside(method: IntegerBinAndQuant, max_drop: float | None = None, *, parts: bool = True) -> tuple[Method, ...]:
    """The rows that stand beside a method.

    Args:
      method: that is kept.
      max_drop: of a row with another limit, for all layers and for each; None leaves it out.
      parts: whether there is a row without each part of the method.

    Returns:
      These, then the baselines: k-means with 8 values a layer, as in the paper's Table II, and lossless storage.
    """
    rows: list[Method] = []
    search = method.search
    if max_drop is not None:
        layer_drop = None if search.layer_drop is None else max_drop
        other = replace(search, max_drop=max_drop, layer_drop=layer_drop)
        rows.append(replace(method, search=other, label=f"{method.label}, {100 * max_drop:g} %"))
    if parts:
        rows.append(replace(method, search=replace(search, compensate=False), label="no error compensation"))
        rows.append(replace(method, search=replace(search, correct_bias=False), label="no bias correction"))
    return *rows, KMeans(k=8, rules=CODES, label="k-means, 8 values"), Uncompressed(label="lossless")
