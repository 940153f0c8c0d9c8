"""The gradient over batches is that over the data in one piece."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.classification import batches, classification_score
from bqjax.sensitivity.gradient import loss_gradient

RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(23, 5)).astype(np.float32), np.arange(23) % 3
PARAMS = {
    "a": {"kernel": RNG.normal(size=(5, 4)).astype(np.float32), "bias": RNG.normal(size=(1, 4)).astype(np.float32)},
    "b": jnp.asarray(RNG.normal(size=(4, 3)), jnp.bfloat16),
    "steps": np.int32(3),
    "unused": np.ones(2, np.float32),
}


def apply(params, x):
    return jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"].astype(jnp.float32)


SCORE = classification_score(apply)


@pytest.mark.parametrize("size", [23, 8, 5, 1])
def test_it_is_that_of_the_concatenated_data(size):
    def mean_loss(floats):
        logits = apply(floats, INPUTS)
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(23), LABELS])

    expected = jax.grad(mean_loss)({"a": PARAMS["a"], "b": PARAMS["b"]})
    found = loss_gradient(SCORE, PARAMS, batches(INPUTS, LABELS, size))
    assert list(found) == ["a/bias", "a/kernel", "b", "unused"]
    np.testing.assert_allclose(found["a/kernel"], expected["a"]["kernel"], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found["a/bias"], expected["a"]["bias"], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found["b"], np.asarray(expected["b"], np.float32), rtol=2e-2, atol=1e-3)  # bfloat16
    assert not found["unused"].any()
    assert {g.dtype for g in found.values()} == {np.dtype(np.float32)}


def test_batches_of_several_sizes_count_by_their_examples():
    data = [*batches(INPUTS[:10], LABELS[:10], 10), *batches(INPUTS[10:], LABELS[10:], 13)]
    whole = loss_gradient(SCORE, PARAMS, batches(INPUTS, LABELS, 23))
    for name, g in loss_gradient(SCORE, PARAMS, data).items():
        np.testing.assert_allclose(g, whole[name], rtol=1e-2 if name == "b" else 2e-5, atol=1e-3 if name == "b" else 1e-6)


def test_a_scalar_score_and_the_sign():
    def score(params, batch):
        return jnp.sum(batch @ params["w"]), len(batch)

    params = {"w": np.ones(5, np.float32)}
    up = loss_gradient(score, params, [INPUTS], "score")["w"]
    np.testing.assert_allclose(up, -INPUTS.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loss_gradient(score, params, [INPUTS], "-score")["w"], -up)


def test_what_has_no_gradient_is_refused():
    data = batches(INPUTS, LABELS, 8)
    with pytest.raises(ValueError, match="no batches"):
        loss_gradient(SCORE, PARAMS, [])
    with pytest.raises(ValueError, match="zero for every weight: name a smooth metric"):
        loss_gradient(SCORE, PARAMS, data, "accuracy")
    with pytest.raises(ValueError, match="no metric 'los'"):
        loss_gradient(SCORE, PARAMS, data, "-los")
    with pytest.raises(ValueError, match="counted no examples"):
        loss_gradient(SCORE, PARAMS, [{**data[0], "mask": jnp.zeros(8)}])
    with pytest.raises(ValueError, match="NaN or infinite in leaf 'a/bias'"):
        loss_gradient(SCORE, {**PARAMS, "b": PARAMS["b"] * np.nan}, data)
