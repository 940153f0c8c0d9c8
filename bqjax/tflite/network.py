"""A quantized ``.tflite`` model as the functions that a search or a sweep takes.

The JAX twin gives everything: inputs of layers, gradients, a score that can be sliced. LiteRT gives a score alone, on CPU several
times as fast; where the twin lacks an operator, nothing else is known of a layer but its codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.classification import batches, classification_score
from bqjax.core.task import Score, Task
from bqjax.tflite.codes.layer_stats import Measured, to_rows
from bqjax.tflite.codes.search import QuantizedNetwork
from bqjax.tflite.examples import ExamplesOf, examples_of
from bqjax.tflite.format.model import Model, read, rewritten
from bqjax.tflite.format.weights import layers, weight_names
from bqjax.tflite.interpret import interpret
from bqjax.tflite.twin.graph import build

__all__ = ["Scorer", "halves", "interpreted_network", "predictions", "quantized_task", "twin_network", "unmeasured"]

Scorer = Literal["litert", "twin"]


def halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending rows of two random halves of ``n`` examples, the first to search on.

    Raises:
      ValueError: fewer than two examples.
    """
    if n < 2:
        raise ValueError(f"two halves need at least 2 examples, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def predictions(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """Classes ``[n]`` by LiteRT with its default kernels, of examples ``[n, ...]``."""
    return interpret(content, inputs).reshape(len(inputs), -1).argmax(1)


def twin_network(model: Model, scored_by: Scorer = "twin") -> QuantizedNetwork:
    """A model through its JAX twin.

    Args:
      model: the model.
      scored_by: ``"litert"`` has LiteRT count the right answers, as :func:`interpreted_network` does; inputs of layers and
        gradients are the twin's.

    Raises:
      ValueError: an operator that the twin does not know; logits that are not quantized.
    """
    twin = build(model.graph)
    logits = model.graph.tensors[twin.logits_index]
    if logits.scale is None or logits.zero_point is None:
        raise ValueError(f"the model's logits {logits.name!r} are not quantized")
    scale, zero = float(logits.scale[0]), int(logits.zero_point[0])

    def apply(params: Any, x: jax.Array) -> jax.Array:
        codes = twin.apply_logits(params, x)
        return (codes.reshape(codes.shape[0], -1).astype(jnp.float32) - zero) * scale

    def real(params: Any, batch: Any) -> jax.Array:
        z = twin.apply_real(params, batch["inputs"])
        return z.reshape(z.shape[0], -1) * batch["mask"][:, None]

    score = classification_score(apply) if scored_by == "twin" else _litert_score(model)
    return QuantizedNetwork(model.params, twin.layers, twin.layer_inputs, real, score, traceable=scored_by == "twin")


def _litert_score(model: Model) -> Score:
    """Right answers by LiteRT with its default kernels; not traceable."""

    def score(params: Any, batch: Mapping[str, Any]) -> tuple[dict[str, float], float]:
        counted = np.asarray(batch["mask"]) != 0
        guess = predictions(rewritten(model, params), np.asarray(batch["inputs"])[counted])
        return {"accuracy": float((guess == np.asarray(batch["labels"])[counted]).sum())}, float(counted.sum())

    return score


def interpreted_network(model: Model) -> QuantizedNetwork:
    """A model through LiteRT: its score is the share of right answers of the rewritten file, and there is nothing else.

    The score takes concrete params alone. Layers cannot be measured: see :func:`unmeasured`.
    """

    def absent(*_: Any) -> NoReturn:
        raise ValueError("a model that LiteRT scores gives no inputs of layers and no gradients: it needs an operator's JAX twin")

    return QuantizedNetwork(model.params, layers(model.graph), absent, absent, _litert_score(model), traceable=False)


def unmeasured(network: QuantizedNetwork) -> dict[str, Measured]:
    """What stands for measurements where layers cannot be measured, from the codes alone.

    Inputs are taken as uncorrelated, of mean 0 and equal power; an error counts by its power over that of the layer's codes, each
    layer as a whole as much as any other. With these, errors are not compensated and biases not moved.
    """
    found = {}
    for name, layer in network.layers.items():
        leaves = network.params[name]
        rows = to_rows(np.asarray(leaves["codes"]).astype(np.float32), layer.kind)
        power = np.square(rows - float(np.asarray(leaves["zero_point"]).reshape(-1)[0])).sum(dtype=np.float64)
        groups, _, d = rows.shape
        found[name] = Measured(
            np.broadcast_to(np.eye(d, dtype=np.float32), (groups, d, d)),
            np.zeros((groups, d), np.float32),
            2**30,  # nothing is left to chance: no damping beyond what is asked for
            np.full(rows.shape, 1 / max(power, 1.0), np.float32),
        )
    return found


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


def quantized_task(data_dir: Path | None, model_name: str, examples: ExamplesOf, *, seed: int = 0, batch_size: int = 50) -> Task:
    """A model's twin as a task of ``bqjax sweep``, scored against the labels.

    Weights have short names. Zero points are brought to the codes' number of dimensions, so that perturbations of codes find them.

    Args:
      data_dir: the folder of ``--data``.
      model_name: the ``.tflite`` file within it.
      examples: see :func:`~bqjax.tflite.examples.examples_of`; a half drawn by ``seed`` is the task's calibration data.
      seed: of the halves.
      batch_size: of the twin.

    Raises:
      ValueError: no ``data_dir``; a model or examples that cannot be used; an operator that the twin does not know.
    """
    if data_dir is None:
        raise ValueError(f"--data is missing: it must name a folder with {model_name}")
    model = read(data_dir / model_name)
    found = examples_of(examples, data_dir, model.graph.tensors[model.graph.inputs[0]])
    names, params = _short_names(list(model.params)), {}
    for index, name in weight_names(model.graph).items():
        tensor = model.graph.tensors[index]
        shape = [-1 if i == tensor.axis else 1 for i in range(len(tensor.shape))]
        leaves = model.params[name]
        params[names[name]] = {**leaves, "zero_point": leaves["zero_point"].reshape(shape)}
    network = twin_network(model)

    def score(params: Any, batch: Any) -> Any:
        return network.score({name: params[short] for name, short in names.items()}, batch)

    calibration, test = (
        batches(found.inputs[rows], found.labels[rows], min(batch_size, len(rows))) for rows in halves(len(found.labels), seed)
    )
    half = len(found.labels) // 2
    return Task(
        name=Path(model_name).name,
        params=params,
        score=score,
        calibration=calibration,
        test=test,
        calibration_name=f"{half:,} examples, the half for searching",
        test_name=f"{len(found.labels) - half:,} examples, the half for reporting",
    )
