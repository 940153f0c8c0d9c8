"""One pass over batches against NumPy on the whole data, and errors of paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from test_experiment import forward, tiny_task

from bqjax.scoring import paired_error, score_on


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


def test_the_error_of_a_paired_difference():
    before, after = np.random.default_rng(0).random((2, 40))
    # The standard error of the mean of the differences (with n in the variance's denominator).
    assert paired_error(before, after, 40) == pytest.approx(np.std(after - before) / np.sqrt(40))
    assert paired_error(before, before, 40) == 0
    assert paired_error(None, after, 40) is None and paired_error(before, None, 40) is None
