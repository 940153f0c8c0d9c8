"""The objective of image classifiers, against its parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.tree import named_leaves
from train.image.config import TrainConfig
from train.image.objective import ImageObjective
from train.image.problems import float_network, problem
from train.step import Network


def test_labels_are_mixed_as_images_are(monkeypatch):
    config = TrainConfig(model="digits", dataset="digits", float_epochs=1, cutmix=0.5)
    # Halves: an image of the batch is its own on the left and the one before it on the right.
    monkeypatch.setattr(
        "train.image.objective.cutmix",
        lambda key, images, probability: (images.at[:, :, 4:].set(jnp.roll(images, 1, 0)[:, :, 4:]), jnp.full(len(images), 0.5)),
    )
    monkeypatch.setattr("train.image.objective.crop_and_flip", lambda key, images, pad, flip: images)
    data, model = problem(config, None), float_network(config, None)
    objective = ImageObjective(config, model, None, data)
    images, labels = (jnp.asarray(part) for part in data.train.batch(np.arange(16)))
    network = Network(named_leaves(objective.network), objective.rest(objective.network), objective.statistics)
    loss, (_, figures) = objective(network, (images, labels), jax.random.key(0), jnp.float32(0), None)
    mixed = images.at[:, :, 4:].set(jnp.roll(images, 1, 0)[:, :, 4:])
    logits = objective.model(objective.variables(network))(data.inputs(mixed))
    lost = jax.nn.logsumexp(logits, axis=1, keepdims=True) - logits
    at = np.arange(16)
    assert float(loss) == pytest.approx(float((lost[at, labels] + lost[at, jnp.roll(labels, 1)]).mean()) / 2, rel=1e-5)
    found = jnp.argmax(logits, axis=1)
    right = ((found == labels) + 0.0 + (found == jnp.roll(labels, 1))).mean() / 2
    assert float(figures["accuracy"]) == pytest.approx(float(right), abs=1e-6)
