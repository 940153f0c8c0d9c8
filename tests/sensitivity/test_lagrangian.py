"""The search for the highest lmbda within limits, on a network whose accuracy falls with the distortion by construction."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import bqjax
from bqjax.core.leaves import bits, decode
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.sensitivity.lagrangian import lambda_within, removal_unit

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


def compress(lmbda):
    return bin_and_quant_ecsq(PARAMS, STATS, IMPORTANCE, lmbda)


def drop_at(lmbda):
    tree = compress(lmbda)
    return float(jnp.mean(jnp.square(decode(tree)["w"] - W))), bits(tree, "entropy")


def search(**settings):
    return bqjax.search_lambda(compress, score, PARAMS, BATCHES, IMPORTANCE, **settings)


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_the_lmbda_keeps_the_limit_and_a_higher_one_does_not(limit):
    lmbda = search(limits={"accuracy": limit}, steps=10)
    assert drop_at(lmbda)[0] <= limit < drop_at(lmbda * 1.1)[0]


def test_allowing_more_saves_bits():
    small, large = (drop_at(search(limits={"accuracy": limit}))[1] for limit in (0.05, 0.3))
    assert large < 0.7 * small


def test_every_limit_holds():
    # The loss is twice the distortion: its limit of 0.1 is the tighter one.
    lmbda = search(limits={"accuracy": 0.3, "-loss": 0.1}, steps=10)
    assert 0.04 < drop_at(lmbda)[0] <= 0.05


def test_what_cannot_be_searched_is_an_error():
    with pytest.raises(ValueError, match="no lmbda keeps the limit: the nearest"):
        search(limits={"accuracy": 1e-5})
    with pytest.raises(ValueError, match="importance names none"):
        bqjax.search_lambda(compress, score, PARAMS, BATCHES, {}, limits={"accuracy": 0.1})
    with pytest.raises(ValueError, match="name a metric and its largest drop"):
        search(limits={})


def test_a_weight_removed_costs_half_its_square():
    assert removal_unit(PARAMS, {"w": 3 * IMPORTANCE["w"]}) == pytest.approx(1.5 * float(np.var(W)), rel=1e-5)


def test_progress_tells_every_step():
    told = []
    search(limits={"accuracy": 0.1}, steps=3, progress=lambda done, total, message: told.append((done, total, message)))
    assert [t[:2] for t in told] == [(1, 3), (2, 3), (3, 3)] and "drop of accuracy +0." in told[0][2]


def test_any_excess_is_searched_down_to_the_lowest():
    found = lambda_within(lambda lmbda: lmbda - 0.3, 1.0, steps=9, scan=0)
    assert 0.28 < found <= 0.3
    assert lambda_within(lambda lmbda: lmbda - 2.0**-16, 1.0, steps=2, scan=0) == 2.0**-16
    with pytest.raises(ValueError, match="no lmbda keeps the limit: the nearest"):
        lambda_within(lambda lmbda: 1 + lmbda, 1.0, steps=4, scan=1)
