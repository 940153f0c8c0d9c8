"""Connectionist temporal classification: the loss of speech networks, and scores of their transcripts that JAX can trace.

An utterance whose frames are fewer than its transcript needs, one a character and one more between equal neighbours,
has no alignment and an infinite loss. Such utterances are left out of losses, and counted.

References:
  Graves et al. Connectionist Temporal Classification. ICML 2006.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bqjax.core.task import Predictions, Score
from bqjax.models.recurrent import valid_frames

__all__ = ["ctc_losses", "ctc_outputs", "ctc_predict", "ctc_score", "edit_distances", "greedy_labels", "words"]

_PRIME = 1_000_003


def ctc_losses(logits: jax.Array, lengths: jax.Array, labels: jax.Array, label_lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """CTC loss of each utterance, and whether it has one.

    Args:
      logits: ``[n, t, classes]``; class 0 is the blank.
      lengths: ``[n]`` frames of each utterance.
      labels: ``[n, most]`` classes from 1.
      label_lengths: ``[n]`` labels of each utterance.

    Returns:
      ``[n]`` negative log likelihoods in nats, 0 where there are too few frames, and ``[n]`` booleans, False there.

    Example:
      >>> arguments = jnp.zeros((2, 2, 2)), jnp.array([2, 2]), jnp.array([[1, 1], [1, 1]]), jnp.array([1, 2])
      >>> losses, possible = jax.jit(ctc_losses)(*arguments)
      >>> [round(float(loss), 3) for loss in losses], possible.tolist()  # three of four paths say A; A-A needs three frames
      ([0.288, 0.0], [True, False])
    """
    inside = valid_frames(label_lengths, labels.shape[1])
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & inside[:, 1:], axis=1)
    possible = label_lengths + repeats <= lengths
    padding = ~valid_frames(lengths, logits.shape[1])
    # The frames behind an utterance may hold anything; gradients of what is not looked at must be 0, not NaN.
    logits = jnp.where(padding[:, :, None], 0, logits)
    losses = optax.ctc_loss(logits, padding.astype(logits.dtype), labels, (~inside).astype(logits.dtype))
    return jnp.where(possible, losses, 0.0), possible


def greedy_labels(logits: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy (best path) decoding: the likeliest class of each frame without repeats and blanks; traceable.

    Args:
      logits: ``[n, t, classes]``.
      lengths: ``[n]``.

    Returns:
      ``[n, t]`` classes, those found first and then zeros, and ``[n]`` how many were found.

    Example:
      >>> labels, found = greedy_labels(jax.nn.one_hot(jnp.array([[2, 2, 0, 2, 1]]), 3), jnp.array([5]))
      >>> labels.tolist(), found.tolist()
      ([[2, 2, 1, 0, 0]], [3])
    """
    path = jnp.argmax(logits, axis=2)
    before = jnp.pad(path[:, :-1], ((0, 0), (1, 0)))
    kept = (path != 0) & (path != before) & valid_frames(lengths, path.shape[1])
    order = jnp.argsort(~kept, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(kept, path, 0), order, axis=1), jnp.sum(kept, axis=1)


def edit_distances(a: jax.Array, a_lengths: jax.Array, b: jax.Array, b_lengths: jax.Array) -> jax.Array:
    """Levenshtein distances of the pairs of two batches of sequences; traceable.

    Args:
      a: ``[n, p]`` integers; what lies behind ``a_lengths`` is not read.
      a_lengths: ``[n]``.
      b: ``[n, q]`` integers.
      b_lengths: ``[n]``.

    Returns:
      ``[n]`` int32.

    Example:
      >>> edit_distances(jnp.array([[1, 2, 3]]), jnp.array([3]), jnp.array([[2, 3, 3]]), jnp.array([2])).tolist()
      [1]
    """
    at = jnp.arange(b.shape[1] + 1, dtype=jnp.int32)

    def one(a: jax.Array, n_a: jax.Array, b: jax.Array, n_b: jax.Array) -> jax.Array:
        def step(row: jax.Array, entry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            x, i = entry
            replaced = row[:-1] + (b != x)
            above = jnp.concatenate([row[:1] + 1, jnp.minimum(row[1:] + 1, replaced)])
            # Insertions run along the row: new[j] = min over k <= j of above[k] + j - k.
            new = jax.lax.cummin(above - at) + at
            return jnp.where(i < n_a, new, row), None

        last, _ = jax.lax.scan(step, at, (a, jnp.arange(a.shape[0])))
        return last[n_b]

    return jax.vmap(one)(a, a_lengths, b, b_lengths)


def words(labels: jax.Array, lengths: jax.Array, separator: int) -> tuple[jax.Array, jax.Array]:
    """Each word as one number: sequences of labels cut at the separator, empty words left out; traceable.

    Words are hashed to 32 bits, so that two different ones are taken for equal about once in 4e9 comparisons.

    Args:
      labels: ``[n, t]`` integers.
      lengths: ``[n]``.
      separator: the label between words.

    Returns:
      ``[n, t]`` uint32 hashes, those found first and then zeros, and ``[n]`` how many were found.
    """
    inside = valid_frames(lengths, labels.shape[1])
    letter = inside & (labels != separator)

    def step(state: Any, entry: Any) -> Any:
        value = state
        label, is_letter = entry
        value = jnp.where(is_letter, value * jnp.uint32(_PRIME) + label.astype(jnp.uint32) + 1, jnp.uint32(0))
        return value, value

    _, running = jax.lax.scan(step, jnp.zeros(len(labels), jnp.uint32), (labels.T, letter.T))
    ends = letter & ~jnp.pad(letter[:, 1:], ((0, 0), (0, 1)))
    order = jnp.argsort(~ends, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(ends, running.T, 0), order, axis=1), jnp.sum(ends, axis=1)


class _Heard(NamedTuple):
    """What a network makes of each utterance of a batch: sums of the score, a number that tells transcripts apart."""

    sums: dict[str, jax.Array]
    references: jax.Array
    transcripts: jax.Array
    counted: jax.Array


def _hear(apply: Callable[..., Any], separator: int | None, params: Any, batch: Mapping[str, Any]) -> _Heard:
    labels, label_lengths = jnp.asarray(batch["labels"]), jnp.asarray(batch["label_lengths"])
    logits, lengths = apply(params, batch["inputs"], jnp.asarray(batch["lengths"]))
    losses, possible = ctc_losses(logits, lengths, labels, label_lengths)
    found, n_found = greedy_labels(logits, lengths)
    whole, _ = words(found, n_found, separator=-1)  # all of it as one word
    if separator is not None:
        found, n_found = words(found, n_found, separator)
        labels, label_lengths = words(labels, label_lengths, separator)
    errors = edit_distances(labels, label_lengths, found, n_found)
    # A network that gives NaN has recognised nothing, although argmax names classes for it.
    broken = jnp.isnan(jnp.where(valid_frames(lengths, logits.shape[1])[:, :, None], logits, 0)).any(axis=(1, 2))
    errors = jnp.where(broken, label_lengths, errors)
    return _Heard({"loss": losses, "errors": errors, "impossible": ~possible}, label_lengths, whole[:, 0], _counted(batch))


def _counted(batch: Mapping[str, Any]) -> jax.Array:
    mask = batch.get("mask")
    return jnp.ones(len(batch["labels"]), bool) if mask is None else jnp.asarray(mask) != 0


def ctc_score(apply: Callable[..., Any], *, separator: int | None = None) -> Score:
    """The score of a speech network by greedy decoding: losses and errors, a character or a word of the reference each.

    Args:
      apply: ``apply(params, inputs, lengths) -> (logits [n, t, classes], lengths [n])``.
      separator: the class between words, to count words; None counts characters.

    Returns:
      A score for batches ``{"inputs": [n, t, f], "lengths": [n], "labels": [n, m], "label_lengths": [n]}`` with an
      optional ``"mask": [n]``. Its sums are ``"loss"`` (nats, without the utterances that have no alignment), ``"errors"`` (edits)
      and ``"impossible"`` (utterances without alignment); its count is of reference characters or words, so that the metric
      ``"errors"`` is the character or word error rate, and ``"-errors"`` what a search maximises.
    """

    def score(params: Any, batch: Mapping[str, Any]) -> tuple[dict[str, jax.Array], jax.Array]:
        heard = _hear(apply, separator, params, batch)
        total = {name: jnp.sum(jnp.where(heard.counted, x, 0)).astype(jnp.float32) for name, x in heard.sums.items()}
        return total, jnp.sum(jnp.where(heard.counted, heard.references, 0)).astype(jnp.float32)

    return score


def ctc_predict(apply: Callable[..., Any], *, separator: int | None = None) -> Callable[[Any, Any], Predictions]:
    """The transcripts that :func:`ctc_score` counts the errors of, as numbers (hashes of 32 bits), and each one's errors and loss.

    An utterance is right where there are no errors, so that agreement is the share of equal transcripts. Args are those of
    :func:`ctc_score`.
    """

    def predict(params: Any, batch: Mapping[str, Any]) -> Predictions:
        heard = _hear(apply, separator, params, batch)
        errors = heard.sums["errors"]
        return Predictions(heard.transcripts, errors == 0, heard.counted, {"errors": errors, "loss": heard.sums["loss"]})

    return predict


def ctc_outputs(apply: Callable[..., Any]) -> Callable[[Any, Any], jax.Array]:
    """Logits ``[n, t, classes]`` of a batch, zero behind each utterance and for padding, the ``outputs`` of a task.

    Args:
      apply: see :func:`ctc_score`.
    """

    def outputs(params: Any, batch: Mapping[str, Any]) -> jax.Array:
        logits, lengths = apply(params, batch["inputs"], jnp.asarray(batch["lengths"]))
        inside = valid_frames(lengths, logits.shape[1]) & _counted(batch)[:, None]
        return jnp.where(inside[:, :, None], logits, 0)

    return outputs
