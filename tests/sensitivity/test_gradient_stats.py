"""Running statistics of gradients against NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity import gradient_stats
from bqjax.sensitivity.gradient_stats import gradient_recorder


class Layer(NamedTuple):
    w: Any
    steps: Any


def gradients(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {"a": draw(2, 3), "layers": [Layer(draw(4), np.int32(1)), (jnp.asarray(draw(2)).astype(jnp.bfloat16), None)]}


def floats(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def run(grads, decay, jit=True):
    step = jax.jit(gradient_stats.update, static_argnums=2) if jit else gradient_stats.update
    stats = gradient_stats.init(grads[0])
    for g in grads:
        new = step(stats, g, decay)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), stats)
        stats = new
    return stats


def without_integers(tree):
    return [tree["a"], tree["layers"][0].w, tree["layers"][1][0]]


@pytest.mark.parametrize("decay", [None, 0.75, 0.0])
def test_running_means(decay):
    grads = [gradients(i) for i in range(9)]
    stats = run(grads, decay)
    # Weight of each update: the first 1 / (1 - decay) all count the same, later ones push them back.
    weights = np.zeros(9)
    for i in range(9):
        rate = max(1 / (i + 1), 0 if decay is None else 1 - decay)
        weights *= 1 - rate
        weights[i] = rate
    np.testing.assert_allclose(weights.sum(), 1)
    columns = list(zip(*(floats(g) for g in grads), strict=True))
    for got, column in zip(without_integers(stats.mean), columns, strict=True):
        np.testing.assert_allclose(got, np.tensordot(weights, np.abs(column), 1), rtol=1e-5)
    for got, column in zip(without_integers(stats.square), columns, strict=True):
        np.testing.assert_allclose(got, np.tensordot(weights, np.square(column), 1), rtol=1e-5)
    for got, column in zip(without_integers(stats.last), columns, strict=True):
        np.testing.assert_allclose(got, np.abs(column[-1]), rtol=1e-6)
    assert (int(stats.steps), int(stats.skipped)) == (9, 0)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(stats.mean))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_left_out_and_counted(bad):
    grads = [gradients(i) for i in range(3)]
    broken = gradients(7)
    broken["a"][1, 1] = bad
    stats, expected = run([*grads[:2], broken, grads[2]], 0.9), run(grads, 0.9)
    assert (int(stats.steps), int(stats.skipped)) == (3, 1)
    for a, b in zip(jax.tree.leaves(stats[:3]), jax.tree.leaves(expected[:3]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_recorder_lets_updates_pass():
    init, update = gradient_recorder(decay=None)
    g = gradients(0)
    passed, stats = update(g, init(g), g)
    assert passed is g
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(run([g], None, jit=False)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_unfit_decay(decay):
    g = gradients(0)
    with pytest.raises(ValueError, match="decay must be in"):
        gradient_recorder(decay)
    with pytest.raises(ValueError, match="decay must be in"):
        gradient_stats.update(gradient_stats.init(g), g, decay)
