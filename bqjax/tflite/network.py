"""A quantized ``.tflite`` model as the functions that a search or a sweep takes.

The JAX twin gives everything: inputs of layers, gradients, a score that can be sliced. LiteRT gives a score alone, on CPU several
times as fast; where the twin lacks an operator, nothing else is known of a layer but its codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.classification import classification_score
from bqjax.core.task import Predictions, Score
from bqjax.tflite.codes.layer_stats import Measured, layer_layout
from bqjax.tflite.codes.search import QuantizedNetwork
from bqjax.tflite.format.graph import Operator
from bqjax.tflite.format.model import Model, rewritten
from bqjax.tflite.format.weights import layers
from bqjax.tflite.interpret import interpret
from bqjax.tflite.twin.graph import Twin, build

__all__ = [
    "Scorer",
    "interpreted_network",
    "litert_predict",
    "litert_score",
    "predictions",
    "twin_logits",
    "twin_network",
    "unmeasured",
]

Scorer = Literal["litert", "twin"]


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
    apply = twin_logits(model, twin)

    def real(params: Any, batch: Any) -> jax.Array:
        z = twin.apply_real(params, batch["inputs"])
        return z.reshape(z.shape[0], -1) * batch["mask"][:, None]

    score = classification_score(apply) if scored_by == "twin" else litert_score(litert_predict(model))
    found = _searched(model, twin.layers)

    def inputs(params: Any, x: Any) -> dict[str, jax.Array]:
        return {name: value for name, value in twin.layer_inputs(params, x).items() if name in found}

    tied, fixed = _tied(model, found), _one_bias(model)
    return QuantizedNetwork(model.params, found, inputs, real, score, scored_by == "twin", tied, fixed)


def twin_logits(model: Model, twin: Twin | None = None) -> Callable[[Any, Any], jax.Array]:
    """``apply(params, inputs) -> logits [n, c]`` of the JAX twin, float32.

    Args:
      model: the model.
      twin: of its graph, where it is built already.

    Raises:
      ValueError: an operator that the twin does not know; logits that are not quantized.
    """
    twin = twin or build(model.graph)
    logits = model.graph.tensors[twin.logits_index]
    if logits.scale is None or logits.zero_point is None:
        raise ValueError(f"the model's logits {logits.name!r} are not quantized")
    scale, zero = float(logits.scale[0]), int(logits.zero_point[0])

    def apply(params: Any, x: jax.Array) -> jax.Array:
        codes = twin.apply_logits(params, x)
        return (codes.reshape(codes.shape[0], -1).astype(jnp.float32) - zero) * scale

    return apply


def _searched(model: Model, found: Mapping[str, Operator]) -> dict[str, Operator]:
    """The layers whose codes can change, of those that share their codes the first; weights that are not of 8 bits, those that
    serve another operator too, and those that layers with other zero points share, stay."""
    left = set()
    for first, names in model.sharing("codes").items():
        same = all(np.array_equal(model.params[name]["zero_point"], model.params[first]["zero_point"]) for name in names)
        left |= set(names[1:] if same and first in found else names)
    return {name: operator for name, operator in found.items() if name in model.changeable and name not in left}


def _tied(model: Model, searched: Mapping[str, Operator]) -> dict[str, tuple[str, ...]]:
    """The further layers that have the codes of a searched one."""
    return {first: names[1:] for first, names in model.sharing("codes").items() if first in searched}


def _one_bias(model: Model) -> frozenset[str]:
    """Layers whose bias is another's, too: what one would gain by moving it the other would lose."""
    return frozenset(name for names in model.sharing("bias").values() for name in names)


def litert_predict(model: Model, through: Callable[[bytes], bytes] = bytes) -> Callable[[Any, Any], Predictions]:
    """What LiteRT with its default kernels says of a batch, for :class:`bqjax.core.task.Task`; not traceable.

    The last answer is kept: a score of the same parameters and batch costs nothing more.

    Args:
      model: with other weights.
      through: makes the file that is run of the rewritten one.
    """
    last: tuple[Any, Any, Predictions] | None = None

    def predict(params: Any, batch: Mapping[str, Any]) -> Predictions:
        nonlocal last
        known = last
        if known is not None and known[0] is params and known[1] is batch:
            return known[2]
        plain = {name: {field: np.asarray(leaf) for field, leaf in layer.items()} for name, layer in params.items()}
        counted, labels = np.asarray(batch["mask"]) != 0, np.asarray(batch["labels"])
        guess = np.zeros(len(labels), np.int32)
        guess[counted] = predictions(through(rewritten(model, plain)), np.asarray(batch["inputs"])[counted])
        said = Predictions(guess, (guess == labels) & counted, counted)  # type: ignore[arg-type]
        last = params, batch, said
        return said

    return predict


def litert_score(predict: Callable[[Any, Any], Predictions]) -> Score:
    """Right answers of :func:`litert_predict`; not traceable."""

    def score(params: Any, batch: Mapping[str, Any]) -> tuple[dict[str, float], float]:
        said = predict(params, batch)
        return {"accuracy": float(said.right.sum())}, float(said.counted.sum())

    return score


def interpreted_network(model: Model) -> QuantizedNetwork:
    """A model through LiteRT: its score is the share of right answers of the rewritten file, and there is nothing else.

    The score takes concrete params alone. Layers cannot be measured: see :func:`unmeasured`.
    """

    def absent(*_: Any) -> NoReturn:
        raise ValueError("a model that LiteRT scores gives no inputs of layers and no gradients: it needs an operator's JAX twin")

    found = _searched(model, layers(model.graph))
    tied, fixed = _tied(model, found), _one_bias(model)
    return QuantizedNetwork(model.params, found, absent, absent, litert_score(litert_predict(model)), False, tied, fixed)


def unmeasured(network: QuantizedNetwork) -> dict[str, Measured]:
    """What stands for measurements where layers cannot be measured, from the codes alone.

    Inputs are taken as uncorrelated, of mean 0 and equal power; an error counts by its power over that of the layer's codes, each
    layer as a whole as much as any other. With these, errors are not compensated and biases not moved.
    """
    found = {}
    for name, layer in network.layers.items():
        leaves = network.params[name]
        codes = np.asarray(leaves["codes"]).astype(np.float32)
        rows = layer_layout(layer.kind, codes.shape).to_rows(codes)
        power = np.square(rows - float(np.asarray(leaves["zero_point"]).reshape(-1)[0])).sum(dtype=np.float64)
        groups, _, d = rows.shape
        found[name] = Measured(
            np.broadcast_to(np.eye(d, dtype=np.float32), (groups, d, d)),
            np.zeros((groups, d), np.float32),
            2**30,  # nothing is left to chance: no damping beyond what is asked for
            np.full(rows.shape, 1 / max(power, 1.0), np.float32),
        )
    return found
