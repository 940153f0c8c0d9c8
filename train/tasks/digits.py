"""Trains a small network on scikit-learn's digits within seconds: a real task that needs no download.

from train.tasks.digits import digits_task
task = digits_task(seed=0)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params, nnx_with_params
from bqjax.core.classification import batches, classification_score, classification_task
from bqjax.core.progress import Progress
from bqjax.core.task import Score, Task
from bqjax.models.digits import DigitsConv
from train.data.digits import digits_splits
from train.fit import Measures, fit
from train.schemes import Scheme
from train.step import Network, Objective, Training, network_of, start

__all__ = ["EpochRecord", "digits_task", "train_digits"]

BATCH_SIZE = 64
EVALUATION_BATCH_SIZE = 300
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


class EpochRecord(NamedTuple):
    """One epoch of training: means over its steps' images, measured while the weights change."""

    epoch: int
    loss: float
    accuracy: float


def train_digits(seed: int = 0, epochs: int = 30, progress: Progress | None = None) -> tuple[DigitsConv, list[EpochRecord]]:
    """Trains :class:`~bqjax.models.digits.DigitsConv` on the training split with AdamW and a cosine schedule.

    Each image is moved by at most one pixel in each direction, anew in every epoch.

    Args:
      seed: of the initial weights, the order of the images and their shifts. One seed gives one network on one machine.
      epochs: passes over the training split; 30 take some seconds on two cores.
      progress: called as ``progress(step, total, message)`` after each step.

    Returns:
      ``(model, history)``: the trained network and a record of each epoch.

    Raises:
      ValueError: ``epochs`` is below 1.
      ImportError: scikit-learn is not installed.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    images, labels = digits_splits().train
    steps = len(labels) // BATCH_SIZE
    model = DigitsConv(rngs=nnx.Rngs(seed))
    training = Training(
        name="digits",
        scheme=Scheme(),
        objective=_objective(classification_score(nnx_apply(model))),
        optimizer=optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps * epochs), weight_decay=WEIGHT_DECAY),
        epochs=epochs,
        steps=steps,
        key=jax.random.key(seed),
    )
    rng = np.random.default_rng(seed)
    draws = [(rng.permutation(len(labels)), rng.integers(0, 3, (2, len(labels)))) for _ in range(epochs)]

    def batches(epoch: int) -> Iterator[dict[str, Any]]:
        order, corners = draws[epoch]
        shifted = _shift(images, *corners)
        for rows in order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE):
            yield {"inputs": shifted[rows], "labels": labels[rows]}

    measures = Measures(lambda values: {f"train_{key}": float(sums.sum()) / BATCH_SIZE / len(sums) for key, sums in values.items()})
    first = start(training, nnx_params(model), {}, None, training.key)
    state, history = fit(training, first, batches, measures, progress=progress)
    records = [EpochRecord(i, of["train_loss"], of["train_accuracy"]) for i, of in enumerate(history)]
    return nnx_with_params(model, network_of(training.scheme, state).weights), records


def _objective(score: Score) -> Objective:
    def loss(network: Network, batch: Any, key: jax.Array, progress: jax.Array, teacher: None) -> tuple[jax.Array, Any]:
        sums, count = score(network.weights, batch)
        return sums["loss"] / count, (None, sums)

    return loss


def _shift(images: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Each of ``[n, 8, 8, 1]`` moved by -1, 0 or 1 pixels in each direction, to corners ``[n]`` of 0 to 2; zeros come in."""
    n, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = top[:, None, None] + np.arange(height)[None, :, None]
    columns = left[:, None, None] + np.arange(width)[None, None, :]
    return padded[np.arange(n)[:, None, None], rows, columns]


def digits_task(seed: int = 0, progress: Progress | None = None) -> Task:
    """Trains a network on the digits and gives it with 300 images to calibrate on and 600 to test on.

    Args:
      seed: of the training; the images of each split are always the same.
      progress: called as ``progress(step, total, message)`` after each step.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    model, _ = train_digits(seed, progress=progress)
    splits = digits_splits()
    return classification_task(
        nnx_apply(model),
        nnx_params(model),
        batches(*splits.calibration, EVALUATION_BATCH_SIZE),
        batches(*splits.test, EVALUATION_BATCH_SIZE),
        name="digits",
        calibration_name="calibration images",
        test_name="test images",
    )
