"""Classifiers as tasks: cross-entropy and accuracy, predictions and logits from one function, and batches of one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.task import Array, Predictions, Score, Task

__all__ = ["batches", "classification_outputs", "classification_predict", "classification_score", "classification_task"]

T = TypeVar("T", bound=Task)


def classification_score(apply: Callable[[Any, Any], jax.Array], classes: Sequence[int] | None = None) -> Score:
    """The score of a classifier: right answers and cross-entropy.

    With logits ``z`` and label ``y`` of one example, its loss is ``log sum_j exp(z_j) - z_y`` (nats, over all classes),
    and it is right where ``argmax_j z_j = y``. An example with a NaN logit is never right.

    Args:
      apply: ``apply(params, inputs) -> logits [n, c]``.
      classes: class indices that the argmax for accuracy is restricted to; the loss stays over all ``c`` classes.

    Returns:
      A score for batches ``{"inputs": [n, ...], "labels": [n]}`` with an optional ``"mask": [n]`` of 0 and 1; examples
      of mask 0 count nowhere. Its sums are ``"accuracy"`` and ``"loss"``.

    Raises:
      ValueError: ``classes`` is empty, repeats an index or holds a negative one. The score raises it where the logits
        are not ``[n, c]``, lack one of ``classes``, or the batch's lengths differ.

    Example:
      >>> score = classification_score(lambda params, x: x * params)
      >>> batch = {"inputs": jnp.eye(3), "labels": jnp.array([0, 1, 1]), "mask": jnp.array([1, 1, 0])}
      >>> sums, count = score(1.0, batch)
      >>> float(sums["accuracy"]), round(float(sums["loss"]), 3), float(count)
      (2.0, 1.103, 2.0)
    """
    outcome = _classify(apply, classes)

    def score(params: Any, batch: Mapping[str, Any]) -> tuple[dict[str, jax.Array], jax.Array]:
        _, right, counted, own = outcome(params, batch)
        sums = {
            "accuracy": jnp.sum(right & counted).astype(jnp.float32),
            "loss": jnp.sum(jnp.where(counted, own["loss"], 0.0)),
        }
        return sums, jnp.sum(counted).astype(jnp.float32)

    return score


def classification_predict(
    apply: Callable[[Any, Any], jax.Array], classes: Sequence[int] | None = None
) -> Callable[[Any, Any], Predictions]:
    """Predictions of a classifier, from which :func:`classification_score` counts its right answers.

    Args and errors are those of :func:`classification_score`.
    """
    outcome = _classify(apply, classes)
    return outcome


def classification_outputs(apply: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], jax.Array]:
    """Logits ``[n, c]`` of a batch with zeros for padding, the ``outputs`` of a classification task."""

    def outputs(params: Any, batch: Mapping[str, Any]) -> jax.Array:
        logits = jnp.asarray(apply(params, batch["inputs"]))
        mask = batch.get("mask")
        return logits if mask is None else jnp.where(jnp.asarray(mask)[:, None] != 0, logits, 0)

    return outputs


def classification_task(
    apply: Callable[[Any, Any], jax.Array],
    params: Any,
    calibration: Sequence[Any],
    test: Sequence[Any],
    *,
    name: str,
    classes: Sequence[int] | None = None,
    kind: type[T] = Task,  # type: ignore[assignment]
    **fields: Any,
) -> T:
    """A classifier as a task: its score, predictions and outputs are made from the logits.

    Args:
      apply: ``apply(params, inputs) -> logits [n, c]``.
      params: parameters, any pytree.
      calibration, test: batches of examples, see :func:`batches`.
      name: what reports call the network.
      classes: class indices that are predicted, see :func:`classification_score`; None predicts all.
      kind: the class that is made, :class:`~bqjax.core.task.Task` or one with more fields.
      **fields: other fields of it (``calibration_name``), and those that are to
        differ (``outputs=None``).

    Raises:
      ValueError: as :func:`classification_score` and :class:`~bqjax.core.task.Task`.

    Example:
      >>> images = batches(jnp.eye(3), jnp.array([0, 1, 1]), 2)
      >>> task = classification_task(lambda params, x: x * params, 1.0, images, images, name="toy")
      >>> task.predict(task.params, images[0]).right.tolist()
      [True, True]
    """
    made = {
        "score": classification_score(apply, classes),
        "predict": classification_predict(apply, classes),
        "outputs": classification_outputs(apply),
    }
    return kind(name=name, params=params, calibration=calibration, test=test, **(made | fields))


def _classify(
    apply: Callable[[Any, Any], jax.Array], classes: Sequence[int] | None
) -> Callable[[Any, Mapping[str, Any]], Predictions]:
    """Predictions of a batch, with each example's loss."""
    chosen = None if classes is None else np.asarray(classes, np.int32)
    if chosen is not None and (chosen.ndim != 1 or not chosen.size or chosen.min() < 0 or np.unique(chosen).size < chosen.size):
        raise ValueError(f"classes must be distinct class indices, at least one, got {classes!r}")

    def outcome(params: Any, batch: Mapping[str, Any]) -> Predictions:
        labels = jnp.asarray(batch["labels"])
        logits = jnp.asarray(apply(params, batch["inputs"])).astype(jnp.float32)
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(f"logits must be [n, c] and labels [n], got {logits.shape} and {labels.shape}")
        if chosen is not None and chosen.max() >= logits.shape[1]:
            raise ValueError(f"classes name class {chosen.max()}, but there are {logits.shape[1]} logits")
        counted = jnp.ones(labels.shape, bool)
        if batch.get("mask") is not None:
            counted = jnp.asarray(batch["mask"]) != 0
            if counted.shape != labels.shape:
                raise ValueError(f"the mask must have the labels' shape {labels.shape}, got {counted.shape}")
        guess = jnp.argmax(logits, axis=1) if chosen is None else jnp.asarray(chosen)[jnp.argmax(logits[:, chosen], axis=1)]
        right = (guess == labels) & ~jnp.isnan(logits).any(axis=1)  # argmax would name a class for NaN, too
        loss = jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return Predictions(guess, right, counted, {"loss": loss})

    return outcome


def batches(inputs: Array, labels: Array, batch_size: int) -> list[dict[str, jax.Array]]:
    """Cuts examples into batches of one shape, so that a jitted score compiles once.

    Args:
      inputs: ``[n, ...]``.
      labels: ``[n]`` non-negative integers.
      batch_size: examples per batch.

    Returns:
      Batches ``{"inputs": [batch_size, ...], "labels": [batch_size], "mask": [batch_size]}`` in order. The last one is
      filled up with copies of the last example at mask 0 (a real example, because zeros may be outside of what a
      network can take).

    Raises:
      ValueError: there are no examples, the lengths differ, the labels are not non-negative integers, or
        ``batch_size`` is below 1.

    Example:
      >>> [batch["mask"].tolist() for batch in batches(jnp.ones((3, 2)), jnp.array([0, 1, 0]), 2)]
      [[1.0, 1.0], [1.0, 0.0]]
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if inputs.ndim < 1 or labels.ndim != 1 or len(inputs) != len(labels):
        raise ValueError(f"inputs must be [n, ...] and labels [n], got {inputs.shape} and {labels.shape}")
    if not len(labels):
        raise ValueError("there are no examples to make batches of")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels must be non-negative integers, got {labels.dtype}, smallest {labels.min()}")
    rows = np.arange(-(-len(labels) // batch_size) * batch_size)
    mask = (rows < len(labels)).astype(np.float32)
    rows = np.minimum(rows, len(labels) - 1)
    return [
        {
            "inputs": jnp.asarray(inputs[rows[i : i + batch_size]]),
            "labels": jnp.asarray(labels[rows[i : i + batch_size]], jnp.int32),
            "mask": jnp.asarray(mask[i : i + batch_size]),
        }
        for i in range(0, len(rows), batch_size)
    ]
