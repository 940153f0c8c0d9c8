"""The search for the highest lmbda within limits, on a network whose accuracy falls with the distortion by construction."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import bits, decode
from bqjax.methods.bins import RateConfig, search_lmbda
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import gaussian_bins

rng = np.random.default_rng(0)
W = jnp.asarray(rng.standard_normal((40, 40)), jnp.float32)
PARAMS = {"w": W}
STATS = gaussian_bins(PARAMS, 16)
IMPORTANCE = {"w": np.ones((40, 40), np.float32)}
BATCHES = [jnp.float32(10.0)]


def score(params, batch):
    """An accuracy that is one less the mean squared displacement, on ten examples."""
    distortion = jnp.mean(jnp.square(params["w"] - W))
    return {"accuracy": batch * (1 - distortion), "loss": batch * 2 * distortion}, batch


def drop_at(lmbda):
    tree = bin_and_quant_ecsq(PARAMS, STATS, IMPORTANCE, lmbda)
    return float(jnp.mean(jnp.square(decode(tree)["w"] - W))), bits(tree, "entropy")


def search(config):
    return search_lmbda(score, PARAMS, BATCHES, STATS, IMPORTANCE, config, metric="accuracy", rank_by="-loss")


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_the_lmbda_keeps_the_limit_and_a_higher_one_does_not(limit):
    lmbda = search(RateConfig(max_drop=limit, steps=10))
    assert drop_at(lmbda)[0] <= limit < drop_at(lmbda * 1.1)[0]


def test_allowing_more_saves_bits():
    small, large = (drop_at(search(RateConfig(max_drop=limit)))[1] for limit in (0.05, 0.3))
    assert large < 0.7 * small


def test_the_limit_of_the_ranking_metric_holds_too():
    # The loss is twice the distortion: its limit of 0.1 is the tighter one.
    lmbda = search(RateConfig(max_drop=0.3, max_rank_drop=0.1, steps=10))
    assert 0.04 < drop_at(lmbda)[0] <= 0.05


def test_a_limit_that_no_lmbda_keeps_is_an_error():
    with pytest.raises(ValueError, match="at the lowest lmbda already"):
        search(RateConfig(max_drop=1e-5))


def test_nothing_accepted_is_an_error():
    with pytest.raises(ValueError, match="accepted none"):
        search_lmbda(score, PARAMS, BATCHES, {}, {}, RateConfig(), metric="accuracy", rank_by="-loss")


@pytest.mark.parametrize("bad", [{"lmbda": -1.0}, {"steps": 0}, {"draws": 0}, {"iterations": 0}])
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RateConfig(**bad)


def test_progress_tells_every_step():
    told = []
    search_lmbda(
        score, PARAMS, BATCHES, STATS, IMPORTANCE, RateConfig(max_drop=0.1, steps=3), metric="accuracy", rank_by="-loss",
        progress=lambda done, total, message: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]
