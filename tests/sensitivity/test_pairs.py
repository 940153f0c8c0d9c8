"""Interactions against a plain loop in float64, on a network of which it is known where damages add up."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.task import Predictions
from bqjax.sensitivity.pairs import interactions
from bqjax.sensitivity.perturb import Noise
from bqjax.sensitivity.sweep_rows import point_of
from bqjax.sensitivity.sweeps import Candidate, sweep

F32 = np.float32
KEY = jax.random.key(3)
DRAWS = 3


@functools.cache
def network():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 5)), "b": rng.normal(size=(5, 3)), "c": rng.normal(size=3)}
    return {k: v.astype(F32) for k, v in params.items()}, [rng.normal(size=(n, 4)).astype(F32) for n in (6, 6)]


def values(p, x, xp=jnp):
    """Leaf ``c`` enters by a sum: its damage adds to that of the others."""
    return xp.square(xp.tanh(x @ p["a"]) @ p["b"]).sum(1) + p["c"].sum()


def score(p, x):
    return {"loss": values(p, x).sum()}, x.shape[0]


def predict(p, x):
    n = x.shape[0]
    return Predictions(jnp.zeros(n, int), jnp.zeros(n, bool), jnp.ones(n, bool), {"loss": values(p, x)})


CANDIDATES = [
    Candidate(leaf="a", magnitude=0.3, draws=DRAWS),
    Candidate(leaf="b", magnitude=0.2, draws=DRAWS, upper=0.0),
    Candidate(leaf="b", magnitude=0.2, draws=DRAWS, lower=0.0),
    Candidate(leaf="c", magnitude=0.5, draws=DRAWS),
]


@functools.cache
def measured(group=None):
    """Pairs as candidates side by side; with ``group=1`` each on top of its earlier half."""
    params, batches = network()
    return interactions(score, params, batches, CANDIDATES, key=KEY, predict=predict, group=group)


def by_hand(members):
    """``[draws, n]`` the loss of each example less the unperturbed one."""
    params, batches = network()
    x = np.concatenate(batches).astype(np.float64)
    base = {k: v.astype(np.float64) for k, v in params.items()}
    found = []
    for draw in range(DRAWS):
        changed = dict(base)
        for i in members:
            c = CANDIDATES[i]
            new = np.asarray(Noise("gaussian")(jnp.asarray(params[c.leaf]), point_of(c, draw, KEY, F32)), np.float64)
            changed[c.leaf] = changed[c.leaf] + new - params[c.leaf]
        found.append(values(changed, x, np) - values(base, x, np))
    return np.array(found)


@pytest.mark.parametrize("group", [None, 1])
def test_pairs_are_those_of_a_plain_loop(group):
    found = measured(group)
    assert [(row.first, row.second) for row in found.pairs] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for row in found.pairs:
        both, alone = by_hand((row.first, row.second)), by_hand((row.first,)) + by_hand((row.second,))
        assert row.drop == pytest.approx(both.mean(), rel=1e-4, abs=1e-5)
        assert row.interaction == pytest.approx((both - alone).mean(), rel=1e-3, abs=1e-5)
    assert found.together[0] == pytest.approx(by_hand(range(4)).mean(), rel=1e-4)
    assert found.excess[0] == pytest.approx(found.together[0] - found.sum_of_singles, rel=1e-4)


def test_singles_are_those_of_the_sweep():
    params, batches = network()
    rows = sweep(score, params, batches, CANDIDATES, key=KEY, metric="-loss", predict=predict).rows
    assert [row.drop for row in rows] == pytest.approx([row.drop for row in measured().singles], rel=1e-5)


def test_what_enters_by_a_sum_adds_up():
    values, errors = measured().matrix()
    np.testing.assert_allclose(values[3, :3], 0, atol=1e-5)
    np.testing.assert_allclose(values, values.T)
    assert np.isnan(np.diag(values)).all() and (errors[0, :3][1:] > 0).all()
    assert abs(values[0, 1]) > 1e-3
    # Beyond pairs there is next to nothing here, so that their sum tells what all together cost.
    assert abs(measured().sum_with_pairs - measured().together[0]) < abs(measured().excess[0])


def test_without_predictions_errors_are_over_draws():
    params, batches = network()
    found = interactions(score, params, batches, CANDIDATES[:2], key=KEY)
    (row,), (told, *_) = found.pairs, measured().pairs
    assert (found.n_scores, found.n_resumed) == (3 * DRAWS, 0)  # of two candidates the pair is all
    assert row.interaction == pytest.approx(told.interaction, rel=1e-3)
    excess = by_hand((0, 1)) - by_hand((0,)) - by_hand((1,))
    assert row.error == pytest.approx(excess.mean(1).std(ddof=1) / DRAWS**0.5, rel=1e-3)


@pytest.mark.parametrize("group", [None, 1])
def test_it_goes_on_where_it_was(tmp_path, group):
    params, batches = network()
    state = str(tmp_path / "state")

    def stop(done, total, text):
        if done > 3 * DRAWS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interactions(score, params, batches, CANDIDATES, key=KEY, predict=predict, state_path=state, progress=stop, group=group)
    again = interactions(score, params, batches, CANDIDATES, key=KEY, predict=predict, state_path=state, group=group)
    assert again.n_resumed >= 3 * DRAWS and again.pairs == measured(group).pairs


@pytest.mark.parametrize(
    ("candidates", "pairs", "message"),
    [
        (CANDIDATES[:1], None, "two candidates at least"),
        (CANDIDATES, [(0, 0)], r"the pair \(0, 0\) perturbs the same weights of leaf 'a' twice"),
        (CANDIDATES, [(0, 9)], "names a candidate that is not there"),
        ([CANDIDATES[0], Candidate(leaf="a", magnitude=0.1, draws=DRAWS)], [], "candidates 0 and 1 perturb the same weights"),
        ([CANDIDATES[0], Candidate(leaf="b", magnitude=0.1, draws=1)], None, "one number of draws"),
        ([CANDIDATES[0], Candidate(leaf="b", perturb="uniform", draws=DRAWS)], None, "one perturbation"),
        ([*CANDIDATES, Candidate(leaf="d", draws=DRAWS)], None, "no leaf is named 'd'"),
    ],
)
def test_what_cannot_be_paired_is_refused(candidates, pairs, message):
    params, batches = network()
    with pytest.raises(ValueError, match=message):
        interactions(score, params, batches, candidates, key=KEY, pairs=pairs)


@pytest.mark.parametrize("group", [None, 1])
def test_a_network_that_breaks_is_no_baseline(tmp_path, group):
    # Where the journal answers the unperturbed network, the first that is scored is a perturbed one.
    params, batches = network()
    broken = [Candidate(leaf=leaf, magnitude=3e38 if leaf == "b" else 0.1, draws=2) for leaf in "abc"]
    state = str(tmp_path / "state")

    def stop(done, total, text):
        if done == 12:  # singles and pairs
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interactions(score, params, batches, broken, key=KEY, predict=predict, state_path=state, progress=stop, group=group)
    found = interactions(score, params, batches, broken, key=KEY, predict=predict, state_path=state, group=group)
    assert found.n_resumed == 12 and not np.isfinite([found.pairs[0].drop, found.together[0]]).any()
