"""The task, the classification score against NumPy, and batching."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.classification import (
    batches,
    classification_outputs,
    classification_predict,
    classification_score,
    classification_task,
)
from bqjax.core.task import Task


def linear(params, x):
    return x @ params


def numpy_score(logits, labels, classes=None):
    logits = logits.astype(np.float64)
    masked = logits.copy()
    if classes is not None:
        masked[:, [c for c in range(logits.shape[1]) if c not in classes]] = -np.inf
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return float((masked.argmax(axis=1) == labels).sum()), float(loss.sum())


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(5, 4)).astype(np.float32),
        rng.normal(size=(23, 5)).astype(np.float32),
        rng.integers(0, 4, 23).astype(np.int32),
    )


@pytest.mark.parametrize("classes", [None, (1, 3), (3, 0, 2)])
@pytest.mark.parametrize("batch_size", [1, 7, 23, 40])
def test_sums_agree_with_numpy_whatever_the_batch_size(example, classes, batch_size):
    params, inputs, labels = example
    score = jax.jit(classification_score(linear, classes))
    accuracy = loss = count = 0.0
    for batch in batches(inputs, labels, batch_size):
        sums, n = score(params, batch)
        accuracy, loss, count = accuracy + float(sums["accuracy"]), loss + float(sums["loss"]), count + float(n)
    expected = numpy_score(inputs @ params, labels, classes)
    assert (accuracy, count) == (expected[0], 23.0)
    assert loss == pytest.approx(expected[1], rel=1e-5)


def test_batches_have_one_shape_and_one_compilation(example):
    params, inputs, labels = example
    made = batches(inputs, labels, 10)
    assert [b["mask"].sum() for b in made] == [10, 10, 3]
    assert {b["inputs"].shape for b in made} == {(10, 5)}
    np.testing.assert_array_equal(np.concatenate([b["labels"] for b in made])[:23], labels)
    score = jax.jit(classification_score(linear))
    for batch in made:
        score(params, batch)
    assert score._cache_size() == 1


def test_no_mask_counts_every_example(example):
    params, inputs, labels = example
    sums, count = classification_score(linear)(params, {"inputs": inputs, "labels": labels})
    assert count == 23
    assert float(sums["accuracy"]) == numpy_score(inputs @ params, labels)[0]


def test_restricted_argmax_leaves_the_loss_alone():
    batch = {"inputs": jnp.array([[5.0, 1.0, 2.0]]), "labels": jnp.array([2])}
    every, _ = classification_score(lambda params, x: x)(None, batch)
    some, _ = classification_score(lambda params, x: x, classes=(1, 2))(None, batch)
    assert (every["accuracy"], some["accuracy"]) == (0, 1)
    assert every["loss"] == some["loss"]


def test_nan_logits_are_never_right():
    batch = {"inputs": jnp.full((3, 2), jnp.nan), "labels": jnp.zeros(3, int)}
    sums, count = classification_score(lambda params, x: x)(None, batch)
    assert (sums["accuracy"], count) == (0, 3)
    assert jnp.isnan(sums["loss"])


def test_masked_examples_leave_gradients_finite():
    inputs = jnp.array([[1.0, 2.0], [jnp.inf, 0.0]])
    batch = {"inputs": inputs, "labels": jnp.array([0, 0]), "mask": jnp.array([1, 0])}
    sums, count = classification_score(lambda params, x: x)(None, batch)
    assert count == 1
    assert jnp.isfinite(sums["loss"])


def test_score_runs_under_vmap_and_grad(example):
    params, inputs, labels = example
    score = classification_score(linear)
    batch = batches(inputs, labels, 23)[0]
    stacked = jax.vmap(lambda p: score(p, batch)[0]["loss"])(jnp.stack([params, 2 * params]))
    assert stacked[1] == pytest.approx(float(score(2 * params, batch)[0]["loss"]), rel=1e-5)
    assert jax.grad(lambda p: score(p, batch)[0]["loss"])(params).shape == params.shape


def test_low_precision_logits_are_summed_in_float32(example):
    params, inputs, labels = example
    sums, _ = classification_score(lambda p, x: linear(p, x).astype(jnp.bfloat16))(params, {"inputs": inputs, "labels": labels})
    assert sums["loss"].dtype == jnp.float32


@pytest.mark.parametrize("classes", [(), (1, 1), (-1, 2)])
def test_bad_classes(classes):
    with pytest.raises(ValueError, match="distinct class indices"):
        classification_score(linear, classes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"labels": np.zeros(22, int)}, r"labels \[n\]"), ({"mask": np.ones((23, 1))}, "mask must have"), ({}, "class 9")],
)
def test_bad_batches(example, changed, message):
    params, inputs, labels = example
    score = classification_score(linear, (0, 9) if message == "class 9" else None)
    with pytest.raises(ValueError, match=message):
        score(params, {"inputs": inputs, "labels": labels} | changed)


@pytest.mark.parametrize(
    ("inputs", "labels", "batch_size", "message"),
    [
        (np.ones((0, 2)), np.ones(0, int), 4, "no examples"),
        (np.ones((3, 2)), np.ones(2, int), 4, r"\(3, 2\) and \(2,\)"),
        (np.ones((3, 2)), np.ones((3, 1), int), 4, r"labels \[n\]"),
        (np.ones((3, 2)), np.ones(3), 4, "float64"),
        (np.ones((3, 2)), np.array([0, -1, 1]), 4, "smallest -1"),
        (np.ones((3, 2)), np.ones(3, int), 0, "at least 1"),
    ],
)
def test_bad_examples(inputs, labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        batches(inputs, labels, batch_size)


def test_task_needs_batches_and_metric_names(example):
    params, inputs, labels = example
    good = batches(inputs, labels, 23)
    fields = {"name": "toy", "params": params, "score": classification_score(linear), "calibration": good, "test": good}
    task = Task(**fields)
    assert (task.metric, task.rank_by) == ("accuracy", "-loss")
    with pytest.raises(ValueError, match="'toy' has no test batches"):
        Task(**fields | {"test": []})
    with pytest.raises(ValueError, match="rank_by names no metric: '-'"):
        Task(**fields, rank_by="-")


def test_a_classification_task_is_its_parts(example):
    params, inputs, labels = example
    data = batches(inputs, labels, 13)
    task = classification_task(linear, params, data[:1], data[1:], name="toy", classes=(0, 1), test_name="the rest")
    assert (task.name, task.test_name, task.metric) == ("toy", "the rest", "accuracy")
    assert task.calibration == data[:1] and task.test == data[1:] and task.params is params
    for made, part in (
        (task.score, classification_score(linear, (0, 1))),
        (task.predict, classification_predict(linear, (0, 1))),
        (task.outputs, classification_outputs(linear)),
    ):
        for x, y in zip(jax.tree.leaves(made(params, data[0])), jax.tree.leaves(part(params, data[0])), strict=True):
            np.testing.assert_array_equal(x, y)


def test_fields_of_a_classification_task_can_differ(example):
    class More(Task):
        pass

    params, inputs, labels = example
    data = batches(inputs, labels, 13)
    task = classification_task(linear, params, data, data, name="toy", kind=More, outputs=None, rank_by="accuracy")
    assert type(task) is More and task.outputs is None and task.predict is not None and task.rank_by == "accuracy"
