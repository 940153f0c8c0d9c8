"""The loss of training against NumPy, and the optimiser against its definition."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from train.methods.retrain import RetrainConfig
from train.objective import adam, check_objective, mean_loss


def log_softmax(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def test_loss_is_the_share_of_both():
    rng = np.random.default_rng(0)
    logits, taught, labels = rng.normal(size=(5, 4)) * 3, rng.normal(size=(5, 4)) * 3, np.array([0, 3, 1, 1, 2])
    entropy = -log_softmax(logits)[np.arange(5), labels].mean()
    soft = log_softmax(taught / 4)
    divergence = (np.exp(soft) * (soft - log_softmax(logits / 4))).sum(1).mean()
    found = mean_loss(jnp.float32(logits), jnp.asarray(labels), jnp.float32(taught), 0.3, 4.0)
    assert float(found) == pytest.approx(0.7 * entropy + 0.3 * 16 * divergence, rel=1e-5)
    assert float(mean_loss(jnp.float32(logits), jnp.asarray(labels), None, 0.3, 4.0)) == pytest.approx(entropy, rel=1e-5)


def test_labels_may_be_shares_of_classes():
    rng = np.random.default_rng(1)
    logits, shares = rng.normal(size=(5, 4)) * 3, rng.dirichlet(np.ones(4), size=5)
    found = mean_loss(jnp.float32(logits), jnp.float32(shares), None, 0.0, 4.0)
    assert float(found) == pytest.approx(-(shares * log_softmax(logits)).sum(1).mean(), rel=1e-5)


def test_decay_is_in_the_gradient_and_the_rate_falls_to_0():
    optimizer, w = adam(0.1, 0.5, 4), jnp.float32([2.0])
    state = optimizer.init(w)
    steps = []
    for _ in range(5):
        # Without a gradient the decay alone moves the weight, by the rate: Adam divides by the gradient's size.
        update, state = optimizer.update(jnp.zeros(1), state, w)
        steps.append(-float(update[0]))
    cosine = 0.1 * (1 + np.cos(np.pi * np.arange(5) / 4)) / 2
    assert steps == pytest.approx(cosine, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("weight_decay", -1.0, "weight_decay must be finite and at least 0"),
        ("temperature", float("inf"), "temperature must be positive and finite, got inf"),
    ],
)
def test_numbers_out_of_range(field, value, message):
    check_objective(RetrainConfig())
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RetrainConfig(), **{field: value})
