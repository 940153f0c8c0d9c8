"""Quantized ``.tflite`` models as tasks: to compress, scored by LiteRT, and to perturb, scored by their JAX twin.

Half of the examples are to search on, the other half to report on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bqjax.codec import FileInfo
from bqjax.core.classification import batches, classification_task
from bqjax.core.task import Task
from bqjax.tflite.codes.search import QuantizedInfo, QuantizedNetwork
from bqjax.tflite.container import load_model, save_model
from bqjax.tflite.examples import Examples, read_examples
from bqjax.tflite.format.model import Model, parse_model, read
from bqjax.tflite.format.weights import layers, weight_names
from bqjax.tflite.network import Scorer, interpreted_network, litert_predict, litert_score, twin_logits, twin_network
from bqjax.tflite.twin.graph import unsupported

__all__ = ["TFLiteStorage", "TFLiteTask", "halves", "quantized_task", "tflite_task"]


@dataclass(frozen=True)
class TFLiteStorage:
    """Files that restore a ``.tflite`` model with other weights (see :mod:`bqjax.tflite.container`).

    Trees have the structure of ``model.params``. What a search did to each layer is kept in the file.
    """

    model: Model
    original_name: str = "the .tflite file"

    def original(self, params: Any) -> bytes:
        """The model's file."""
        del params
        return self.model.content

    def n_weights(self, params: Any) -> int:
        """Weights of the whole model, also those that no method changes (:attr:`bqjax.tflite.Model.n_weights`)."""
        del params
        return self.model.n_weights

    def save(
        self,
        path: str | os.PathLike[str],
        tree: Any,
        *,
        info: Any = None,
        coder: str = "auto",
        force: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> FileInfo:
        """See :func:`bqjax.tflite.container.save_model`."""
        report = info if isinstance(info, QuantizedInfo) else None
        return save_model(
            path,
            self.model,
            tree,
            classes=report.classes if report else None,
            searched=self._searched(report) if report else None,
            coder=coder,
            force=force,
            metadata=metadata,
        )

    def _searched(self, report: QuantizedInfo) -> dict[str, tuple[str, float | None]]:
        """What was done to each layer, and to those that a search does not look at."""
        done: dict[str, tuple[str, float | None]] = {layer.name: (layer.reason, layer.drop) for layer in report.layers}
        for first, names in self.model.sharing("codes").items():
            done |= dict.fromkeys(names[1:], (f"as {first}, whose codes it has" if first in done else "other zero points", None))
        first_subgraph = layers(self.model.graph)
        for name in self.model.changeable:
            if name not in first_subgraph:
                done.setdefault(name, ("not searched: LiteRT runs the first subgraph, this is a layer of another", None))
        return done

    def load(self, path: str | os.PathLike[str], like: Any) -> Any:
        """Parameters of the model that the file restores, decoded."""
        del like
        return parse_model(load_model(path)).params


@dataclass(frozen=True, kw_only=True, eq=False)
class TFLiteTask(Task):
    """A task whose network is a quantized model.

    Attributes:
      network: what a search of integer codes needs of it.
      measurable: whether its layers' inputs and gradients are known; without a JAX twin they are not.
    """

    network: QuantizedNetwork
    measurable: bool = True


def tflite_task(
    model_path: str | os.PathLike[str],
    examples: Examples | str | os.PathLike[str],
    *,
    seed: int = 0,
    batch_size: int = 50,
    scored_by: Scorer = "litert",
    twin: bool = True,
) -> TFLiteTask:
    """A quantized model as a task of :class:`bqjax.tflite.IntegerBinAndQuant` and of methods that take integer codes.

    Every reported figure is LiteRT's, on the model that the file restores. Searches use no labels: what may not be lost is
    agreement with the original model (:func:`bqjax.core.agreement.agreement_task`).

    Args:
      model_path: the ``.tflite`` file.
      examples: these, or a file that :func:`~bqjax.tflite.examples.read_examples` takes; a half drawn by ``seed`` is the task's
        calibration data.
      seed: of the halves.
      batch_size: of the twin.
      scored_by: who predicts during the search; on CPU LiteRT is several times as fast as the twin, and it is what is reported.
      twin: False does without, as where the twin lacks an operator: layers are not measured.

    Raises:
      ValueError: a model or examples that cannot be used; fewer than two examples.
    """
    model = read(model_path)
    found = _examples(model, examples)
    search, test = halves(len(found.labels), seed)
    missing = unsupported(model.graph) if twin else "the twin is not asked for"
    predict = litert_predict(model)
    return TFLiteTask(
        name=Path(model_path).name,
        params=model.params,
        score=litert_score(predict),
        predict=predict,
        calibration=batches(found.inputs[search], found.labels[search], min(batch_size, len(search))),
        test=batches(found.inputs[test], found.labels[test], len(test)),
        rank_by="accuracy",
        calibration_name="the search half, by agreement with the original model,",
        test_name="the test half, by LiteRT with its default kernels",
        storage=TFLiteStorage(model),
        agreement=True,
        traceable=False,
        network=interpreted_network(model) if missing else twin_network(model, scored_by),
        measurable=not missing,
        note=f"{missing}: layers are not measured, and their codes are chosen without error compensation and bias correction"
        if missing
        else "",
    )


def _examples(model: Model, given: Examples | str | os.PathLike[str]) -> Examples:
    return given if isinstance(given, Examples) else read_examples(given, model.graph.tensors[model.graph.inputs[0]])


def halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending rows of two random halves of ``n`` examples, the first to search on.

    Raises:
      ValueError: fewer than two examples.
    """
    if n < 2:
        raise ValueError(f"two halves need at least 2 examples, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Names that fit under a figure, by the file's names.

    A fused layer's weight has the names of all its parts, joined by ``;``: the shortest that no other weight has is taken. Folders
    that all of the names share are left out.
    """
    counts = Counter(part for name in names for part in set(name.split(";")))
    short = [min((part for part in name.split(";") if counts[part] == 1), key=len, default=name) for name in names]
    folders = [name.split("/")[:-1] for name in short]
    shared = next((i for i, level in enumerate(zip(*folders, strict=False)) if len(set(level)) > 1), min(map(len, folders)))
    return {name: "/".join(s.split("/")[shared:]) for name, s in zip(names, short, strict=True)}


def quantized_task(
    model_path: str | os.PathLike[str], examples: Examples | str | os.PathLike[str], *, seed: int = 0, batch_size: int = 50
) -> Task:
    """A model's twin as a task of ``bqjax sweep``, scored against the labels.

    Weights have short names. Zero points are brought to the codes' number of dimensions, so that perturbations of codes find them.

    Args:
      model_path: the ``.tflite`` file.
      examples: these, or a file that :func:`~bqjax.tflite.examples.read_examples` takes; a half drawn by ``seed`` is the task's
        calibration data.
      seed: of the halves.
      batch_size: of the twin.

    Raises:
      ValueError: a model or examples that cannot be used; an operator that the twin does not know.
    """
    model = read(model_path)
    found = _examples(model, examples)
    names, params = _short_names(list(model.params)), {}
    for index, name in weight_names(model.graph).items():
        tensor = model.graph.tensors[index]
        shape = [-1 if i == tensor.axis else 1 for i in range(len(tensor.shape))]
        leaves = model.params[name]
        params[names[name]] = {**leaves, "zero_point": leaves["zero_point"].reshape(shape)}
    logits = twin_logits(model)

    def apply(params: Any, inputs: Any) -> Any:
        return logits({name: params[short] for name, short in names.items()}, inputs)

    calibration, test = (
        batches(found.inputs[rows], found.labels[rows], min(batch_size, len(rows))) for rows in halves(len(found.labels), seed)
    )
    half = len(found.labels) // 2
    return classification_task(
        apply,
        params,
        calibration,
        test,
        name=Path(model_path).name,
        outputs=None,  # codes are integers: there is no curvature by them
        calibration_name=f"{half:,} examples, the half for searching",
        test_name=f"{len(found.labels) - half:,} examples, the half for reporting",
    )
