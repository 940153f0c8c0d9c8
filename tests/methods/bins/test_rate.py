"""Entropy-constrained scalar quantization behind the interface of methods: settings, and the limits that they name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import decode
from bqjax.core.task import Task
from bqjax.methods.bins import GaussianBins, RateConfig

W = jnp.asarray(np.random.default_rng(0).standard_normal((40, 40)), jnp.float32)


def score(params, batch):
    """An accuracy that is one less the mean squared displacement, and twice that as the loss, on ten examples."""
    distortion = jnp.mean(jnp.square(params["w"] - W))
    return {"accuracy": batch * (1 - distortion), "loss": batch * 2 * distortion}, batch


def outputs(params, batch):
    return (params["w"] * jnp.ones(())).reshape(1, -1)


def test_both_limits_hold():
    batches = [jnp.float32(10.0)]
    task = Task(name="toy", params={"w": W}, score=score, calibration=batches, test=batches, outputs=outputs)
    # The tighter limit is that of the loss: 0.05 of the distortion.
    method = GaussianBins(bins=16, rate=RateConfig(max_drop=0.3, max_rank_drop=0.1, steps=10))
    found = method.compress(task, key=jax.random.key(0))
    assert 0.04 < float(jnp.mean(jnp.square(decode(found.tree)["w"] - W))) <= 0.05
    fixed = GaussianBins(bins=16, rate=RateConfig(lmbda=float(found.found["lmbda"]))).compress(task, key=jax.random.key(0))
    assert (np.asarray(fixed.tree["w"].indices) == np.asarray(found.tree["w"].indices)).mean() > 0.99


@pytest.mark.parametrize("bad", [{"lmbda": -1.0}, {"steps": 0}, {"draws": 0}, {"iterations": 0}])
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RateConfig(**bad)
