"""The digits network and its training."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import nnx_params
from bqjax.models.digits import DigitsConv
from train.data.digits import digits_splits
from train.tasks.digits import EpochRecord, digits_task, train_digits


@pytest.fixture(scope="module")
def trained():
    calls = []
    return digits_task(seed=0, progress=lambda *call: calls.append(call)), calls


def test_parameters():
    model = nnx.eval_shape(lambda: DigitsConv(rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx_params(model))) == 43_610


def test_splits_are_fixed_stratified_and_disjoint():
    splits = digits_splits()
    assert [len(labels) for _, labels in splits] == [897, 300, 600]
    for (images, labels), (again, _) in zip(splits, digits_splits(), strict=True):
        assert (images.shape[1:], images.dtype, labels.dtype) == ((8, 8, 1), np.float32, np.int32)
        assert 0 <= images.min() < images.max() <= 1
        np.testing.assert_array_equal(images, again)
        shares = np.bincount(labels, minlength=10) / len(labels)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)
    rows = np.concatenate([images.reshape(len(images), -1) for images, _ in splits])
    assert len(np.unique(rows, axis=0)) == len(rows) == 1797


@pytest.mark.parametrize(("split", "n", "accuracy"), [("calibration", 300, 0.96), ("test", 600, 0.975)])
def test_task_is_accurate(trained, split, n, accuracy):
    task, _ = trained
    score = jax.jit(task.score)
    results = [score(task.params, batch) for batch in getattr(task, split)]
    assert sum(float(count) for _, count in results) == n
    assert sum(float(sums["accuracy"]) for sums, _ in results) / n >= accuracy


def test_progress(trained):
    _, calls = trained
    assert [step for step, _, _ in calls] == list(range(1, calls[0][1] + 1))
    assert calls[-1][2].startswith("digits, loss 0.")


def test_history_and_repeatability():
    first, history = train_digits(seed=3, epochs=1)
    second, again = train_digits(seed=3, epochs=1)
    assert history == again
    assert [type(record) for record in history] == [EpochRecord]
    assert 0 < history[0].accuracy < 1
    jax.tree.map(np.testing.assert_array_equal, nnx_params(first), nnx_params(second))


def test_bad_epochs():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        train_digits(epochs=0)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"bqjax\[demo\]"):
        digits_splits()
