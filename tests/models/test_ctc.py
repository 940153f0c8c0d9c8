"""Losses by enumeration and by PyTorch, and traced scores equal to those of the texts."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.models.ctc import ctc_losses, ctc_outputs, ctc_predict, ctc_score, edit_distances, greedy_labels, words
from bqjax.models.transcripts import ENGLISH, cer, edit_distance, greedy, wer

N, T, M = 6, 9, 5
N_COUNTED = 5
losses_of = jax.jit(ctc_losses)


@pytest.fixture
def utterances():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(N, T, 4)).astype(np.float32)
    lengths, label_lengths = np.array([9, 5, 7, 2, 9, 3]), np.array([5, 3, 1, 2, 4, 3])
    labels = rng.integers(1, 4, (N, M))
    labels[3, :2], labels[5, :3] = 2, (1, 1, 2)  # three and four frames are needed, two and three are there
    return logits, lengths, labels, label_lengths


def test_losses_of_pytorch(utterances):
    torch = pytest.importorskip("torch")
    logits, lengths, labels, label_lengths = utterances
    losses, possible = losses_of(*map(jnp.asarray, utterances))
    expected = torch.nn.functional.ctc_loss(
        torch.log_softmax(torch.tensor(logits), 2).transpose(0, 1),
        torch.tensor(labels),
        torch.tensor(lengths),
        torch.tensor(label_lengths),
        reduction="none",
    ).numpy()
    assert possible.tolist() == np.isfinite(expected).tolist() == [True, True, True, False, True, False]
    np.testing.assert_allclose(losses, np.where(possible, expected, 0), rtol=1e-4)


def test_losses_by_enumeration():
    logits = np.random.default_rng(1).normal(size=(1, 4, 3)).astype(np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    total = sum(
        np.prod(p[range(4), path])
        for path in itertools.product(range(3), repeat=4)
        if [c for c, _ in itertools.groupby(path) if c] == [1, 1]
    )
    # In the shapes of the other tests, which compile once.
    everything = np.zeros((N, T, 4), np.float32)
    everything[..., 3] = -1e9
    everything[0, :4, :3] = logits[0]
    losses, _ = losses_of(everything, np.full(N, 4), np.tile([1, 1, 0, 0, 0], (N, 1)), np.full(N, 2))
    np.testing.assert_allclose(losses[0], -np.log(total), rtol=1e-5)


def test_gradients_are_finite_and_leave_padding_alone(utterances):
    logits, lengths, labels, label_lengths = map(jnp.asarray, utterances)
    logits = logits.at[1, 5:].set(jnp.nan)
    grads = jax.jit(jax.grad(lambda x: ctc_losses(x, lengths, labels, label_lengths)[0].sum()))(logits)
    assert np.isfinite(grads).all()
    assert np.any(grads[0])
    for i in (1, 2):
        assert not np.any(grads[i, lengths[i] :])
    for i in (3, 5):
        assert not np.any(grads[i])  # no alignment, no loss


def random_texts(rng, n):
    return ["".join(rng.choice(list(" AB"), rng.integers(0, M))) for _ in range(n)]


def padded(texts, size):
    rows = np.full((len(texts), size), 2)  # what lies behind the lengths is not read
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = ENGLISH.encode(text)
    return jnp.asarray(rows), jnp.asarray([len(text) for text in texts])


def test_distances_of_the_texts():
    rng = np.random.default_rng(0)
    a, b = random_texts(rng, 40), random_texts(rng, 40)
    found = jax.jit(edit_distances)(*padded(a, M), *padded(b, M + 2))
    assert found.tolist() == [edit_distance(x, y) for x, y in zip(a, b, strict=True)]
    (hash_a, n_a), (hash_b, n_b) = (jax.jit(words)(*padded(t, M), 1) for t in (a, b))
    assert n_a.tolist() == [len(x.split()) for x in a]
    found = jax.jit(edit_distances)(hash_a, n_a, hash_b, n_b)
    assert found.tolist() == [edit_distance(x.split(), y.split()) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("separator", [None, 1])
def test_score_is_that_of_the_texts(separator):
    rng = np.random.default_rng(2)
    texts = ["A BA", "BA", " B A", "B", "A", "AB"]
    labels, label_lengths = padded(texts, M)
    lengths = jnp.array([9, 9, 7, 3, 5, 2])
    logits = jnp.asarray(rng.normal(size=(N, T, 4)), jnp.float32)
    # Classes of ENGLISH that do not occur here would only slow the enumeration of alignments down.
    batch = {
        "inputs": logits,
        "lengths": lengths,
        "labels": labels,
        "label_lengths": label_lengths,
        "mask": (jnp.arange(N) < N_COUNTED) * 1,
    }
    score = jax.jit(ctc_score(lambda params, x, n: (x * params, n), separator=separator))
    sums, count = score(jnp.float32(1), batch)
    wide = np.pad(np.asarray(logits), ((0, 0), (0, 0), (0, 25)), constant_values=-99)
    hypotheses = greedy(wide, lengths, ENGLISH)[:N_COUNTED]
    found, n_found = greedy_labels(logits, lengths)
    assert [ENGLISH.decode(found[i, : n_found[i]].tolist()) for i in range(N_COUNTED)] == hypotheses
    if separator:
        assert float(sums["errors"] / count) == pytest.approx(wer(texts[:N_COUNTED], hypotheses))
    else:
        assert float(sums["errors"]) == sum(map(edit_distance, texts[:N_COUNTED], hypotheses))
        assert float(count) == 12
    assert float(sums["impossible"]) == 0
    losses, _ = losses_of(logits, lengths, labels, label_lengths)
    np.testing.assert_allclose(sums["loss"], losses[:N_COUNTED].sum(), rtol=1e-5)
    apply = lambda params, x, n: (x * params, n)  # noqa: E731
    said = jax.jit(ctc_predict(apply, separator=separator))(jnp.float32(1), batch)
    counted = np.asarray(said.counted)
    assert counted.tolist() == [i < N_COUNTED for i in range(N)]
    assert float(said.sums["errors"][counted].sum()) == float(sums["errors"])
    assert (said.right == (said.sums["errors"] == 0)).all()
    # One number a transcript: equal exactly where the texts are.
    numbers = said.predictions[counted].tolist()
    assert [[a == b for b in numbers] for a in numbers] == [[a == b for b in hypotheses] for a in hypotheses]
    seen = np.asarray(jax.jit(ctc_outputs(apply))(jnp.float32(1), batch)) != 0
    assert [int(row.any(axis=1).sum()) for row in seen] == [*lengths[:N_COUNTED].tolist(), 0]
    broken, count = score(jnp.float32(jnp.nan), batch)
    assert float(broken["errors"]) == float(count)
    assert cer(["A"], [""]) == 1.0
