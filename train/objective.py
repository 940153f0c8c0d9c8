"""What every training minimises and by which optimiser: the numbers of a config that say so, checked and used in one place."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

__all__ = ["adam", "adam_by_kind", "check_objective", "mean_loss"]


def check_objective(config: Any) -> None:
    """Checks what configs of training have in common: batch size, rates, weight decay, distillation and its temperature.

    Raises:
      ValueError: one is out of range; the message names the field.
    """
    if config.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {config.batch_size}")
    for field in ("learning_rate", "quantizer_learning_rate", "weight_decay"):
        value = getattr(config, field)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{field} must be finite and at least 0, got {value}")
    if not 0 <= config.distillation <= 1:
        raise ValueError(f"distillation is a share from 0 to 1, got {config.distillation}")
    if not (config.temperature > 0 and math.isfinite(config.temperature)):
        raise ValueError(f"temperature must be positive and finite, got {config.temperature}")


def adam(rate: float, decay: float, total: int) -> optax.GradientTransformation:
    """Adam along a cosine to 0 over ``total`` steps.

    Decay is in the gradient and not beside it, as in the training that the published figures come from.
    """
    return optax.chain(optax.add_decayed_weights(decay), optax.adam(optax.cosine_decay_schedule(rate, total)))


def adam_by_kind(labels: Any, *, rate: float, quantizer_rate: float, decay: float, total: int) -> optax.GradientTransformation:
    """:func:`adam` for each kind of parameter: weights decay, codebooks and quantizers do not, and what is frozen does not move.

    Args:
      labels: as ``optax.partition`` takes them: ``"weights"``, ``"codebooks"``, ``"quantizers"`` and ``"frozen"``.
      rate: of weights and codebooks, at the start.
      quantizer_rate: of intervals and output scales.
      decay: of weights.
      total: steps.
    """
    rates = {
        "weights": adam(rate, decay, total),
        "codebooks": adam(rate, 0.0, total),
        "quantizers": adam(quantizer_rate, 0.0, total),
        "frozen": optax.set_to_zero(),
    }
    return optax.partition(rates, labels)


def mean_loss(logits: jax.Array, labels: jax.Array, taught: jax.Array | None, share: float, temperature: float) -> jax.Array:
    """``(1 - share) cross-entropy + share T^2 KL(teacher || student)``, the mean over a batch. Traceable.

    Args:
      logits: ``[n, classes]``.
      labels: ``[n]`` integers, or ``[n, classes]`` the share of each class.
      taught: ``[n, classes]`` logits of the teacher, through which no gradient goes; None: the cross-entropy alone.
      share, temperature: of the comparison with the teacher.

    References:
      Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2.

    Example:
      >>> same = jnp.array([[2.0, 0.0]])
      >>> float(mean_loss(same, jnp.array([0]), same, 1.0, 4.0))
      0.0
    """
    of_labels = optax.softmax_cross_entropy_with_integer_labels if labels.ndim == 1 else optax.softmax_cross_entropy
    entropy = jnp.mean(of_labels(logits, labels))
    if taught is None:
        return entropy
    soft = jax.nn.log_softmax(jax.lax.stop_gradient(taught) / temperature)
    divergence = jnp.mean(jnp.sum(jnp.exp(soft) * (soft - jax.nn.log_softmax(logits / temperature)), axis=1))
    return (1 - share) * entropy + share * temperature**2 * divergence
