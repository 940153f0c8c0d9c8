"""One pass over batches against NumPy on the whole data, errors of paired differences, and gradients that are taken once."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import forward, tiny_task

from bqjax.core.classification import classification_outputs
from bqjax.core.scoring import mean_metrics, paired_error, score_batches, score_on
from bqjax.sensitivity import task_statistics as scoring
from bqjax.sensitivity.importance import output_importance
from bqjax.sensitivity.task_statistics import task_importance


def test_a_pass_against_numpy():
    task = tiny_task()
    found = score_on(task, task.params, task.calibration)
    kept = [np.asarray(b["mask"]) > 0 for b in task.calibration]
    inputs, labels = (
        np.concatenate([np.asarray(b[of])[k] for b, k in zip(task.calibration, kept, strict=True)]) for of in ("inputs", "labels")
    )
    logits = np.asarray(forward(task.params, inputs, np), np.float64)
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    np.testing.assert_array_equal(found.predictions, logits.argmax(1))
    np.testing.assert_array_equal(found.parts, logits.argmax(1) == labels)
    assert found.n_examples == len(labels) == 60
    assert found.metrics["accuracy"] == pytest.approx(found.parts.mean(), abs=1e-6)
    assert found.metrics["loss"] == pytest.approx(loss.mean(), rel=1e-5)


def test_means_over_batches_weigh_by_examples():
    results = [({"loss": np.float32(6), "accuracy": np.float32(1)}, np.float32(2)), ({"loss": 1, "accuracy": 1}, 1)]
    metrics, count = mean_metrics(results)
    assert (metrics["loss"], metrics["accuracy"], count) == (7 / 3, 2 / 3, 3)
    assert score_batches(lambda params, batch: (params * batch, 2), 3.0, [1.0, 2.0]) == {"score": 9 / 4}


def test_means_of_several_candidates():
    sums, counts = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([2, 1, 0], np.float32)
    metrics, count = mean_metrics([(row, counts) for row in sums])
    np.testing.assert_array_equal(count, [4, 2, 0])
    np.testing.assert_array_equal(metrics["score"], [3 / 4, 5 / 2, 7])  # of what counted nothing the sum
    # The parts of two processes: the second has another candidate's numbers.
    metrics, _ = mean_metrics([(row, counts) for row in sums], gather=lambda part: part[:, ::-1])
    np.testing.assert_array_equal(metrics["score"], [7, 5 / 2, 3 / 4])


def test_nothing_counted():
    with pytest.raises(ValueError, match="the score of task 'x' counted no examples in any batch"):
        mean_metrics([(0.0, 0.0)], of="the score of task 'x'")


def test_the_error_of_a_paired_difference():
    before, after = np.random.default_rng(0).random((2, 40))
    # The standard error of the mean of the differences (with n in the variance's denominator).
    assert paired_error(before, after, 40) == pytest.approx(np.std(after - before) / np.sqrt(40))
    assert paired_error(before, before, 40) == 0
    assert paired_error(None, after, 40) is None and paired_error(before, None, 40) is None


def test_gradients_are_taken_once_a_task(monkeypatch):
    task = tiny_task(outputs=classification_outputs(forward))
    key, calls = jax.random.key(0), []

    def counting(*args, **kwargs):
        calls.append(kwargs["names"])
        return output_importance(*args, **kwargs)

    monkeypatch.setattr(scoring, "output_importance", counting)
    names = ["head/kernel"]
    asked = [task_importance(task, key=key, draws=2, names=names) for _ in range(2)]
    direct = output_importance(task.outputs, task.params, task.calibration, key=key, draws=2, names=names)
    for found in asked:
        np.testing.assert_array_equal(found["head/kernel"], direct["head/kernel"])
        assert not found["head/kernel"].flags.writeable  # it is shared
    # Other draws, another key, other leaves: other numbers.
    task_importance(task, key=jax.random.key(1), draws=2, names=names)
    task_importance(task, key=key, draws=1, names=names)
    assert set(task_importance(task, key=key, draws=2)) == {"head/kernel", "hidden/kernel", "hidden/bias"}
    assert calls == [names, names, names, None]
    with pytest.raises(ValueError, match="has no outputs, which the importance"):
        task_importance(tiny_task(), key=key, draws=2)
