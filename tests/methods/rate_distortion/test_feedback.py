"""Choice of values with compensation, against the least-squares problem that it solves step by step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.methods.rate_distortion import feedback
from bqjax.methods.rate_distortion.feedback import compensated_values

inverse_factor = jax.jit(feedback.inverse_factor)


def problem(seed, rows=5, d=7, k=9):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    w = rng.normal(size=(rows, d)).astype(np.float32) * 3
    bits = rng.uniform(1, 6, k).astype(np.float32)
    return (
        w,
        (x.T @ x / 60).astype(np.float32),
        rng.uniform(0.1, 2, rows).astype(np.float32),
        np.linspace(-8, 8, k, dtype=np.float32),
        bits,
    )


def damped(h, damping):
    return h + damping * np.mean(np.diag(h)) * np.eye(len(h))


def oracle(w, h, g, values, bits, lmbda):
    """For one row: fix the inputs one by one, and solve for all later ones by least squares each time."""
    order = np.argsort(-np.diag(h), kind="stable")
    h = damped(h.astype(np.float64), 0.01)
    fixed, chosen = [], {}
    for j in order:
        fixed.append(j)
        free = [i for i in range(len(w)) if i not in fixed]
        costs = []
        for b, v in enumerate(values):
            e = np.zeros(len(w))
            for i in fixed:
                e[i] = w[i] - (values[chosen[i]] if i != j else v)
            if free:
                e[free] = -np.linalg.solve(h[np.ix_(free, free)], h[np.ix_(free, fixed)] @ e[fixed])
            costs.append(g / 2 * e @ h @ e + lmbda * bits[b])
        chosen[j] = int(np.argmin(costs))
    return [chosen[i] for i in range(len(w))]


@pytest.mark.parametrize("lmbda", [0.0, 0.5])
def test_each_choice_is_the_cheapest_when_later_weights_are_solved_for(lmbda):
    w, h, g, values, bits = problem(0)
    order, factor = inverse_factor(jnp.asarray(h), 0.01)
    index, _ = compensated_values(jnp.asarray(w), order, factor, jnp.asarray(g), jnp.asarray(values), jnp.asarray(bits), lmbda)
    expected = [oracle(w[r], h, g[r], values, bits, lmbda) for r in range(len(w))]
    assert index.tolist() == expected


def test_the_factor_is_that_of_the_damped_inverse():
    h = problem(1)[1]
    order, factor = inverse_factor(jnp.asarray(h), 0.05)
    u = np.asarray(factor, np.float64)
    assert np.array_equal(u, np.triu(u))
    assert (np.diff(np.diag(h)[order]) <= 0).all()
    np.testing.assert_allclose(u.T @ u @ damped(h, 0.05)[order][:, order], np.eye(len(h)), atol=2e-4)


def test_inputs_that_are_always_zero_have_a_finite_factor():
    order, factor = inverse_factor(jnp.zeros((4, 4)))
    assert np.isfinite(factor).all() and sorted(order.tolist()) == [0, 1, 2, 3]


@given(st.integers(0, 10_000))
def test_the_reported_error_is_that_of_the_chosen_values(seed):
    w, h, g, values, bits = problem(seed)
    order, factor = inverse_factor(jnp.asarray(h), 0.01)
    index, error = compensated_values(jnp.asarray(w), order, factor, jnp.asarray(g), jnp.asarray(values), jnp.asarray(bits), 0.1)
    e = w.astype(np.float64) - values[np.asarray(index)]
    np.testing.assert_allclose(error, np.einsum("ri,ij,rj->r", e, damped(h.astype(np.float64), 0.01), e), rtol=2e-3)


def test_compensation_lowers_the_error():
    w, h, g, values, bits = problem(3, rows=200, d=24)
    order, factor = inverse_factor(jnp.asarray(h), 0.01)

    def error(compensate):
        index, _ = compensated_values(w, order, factor, jnp.asarray(g), jnp.asarray(values), jnp.asarray(bits), 0.0, compensate)
        e = w - values[np.asarray(index)]
        return np.einsum("ri,ij,rj->", e, h, e)

    g = np.ones(200, np.float32)
    assert error(True) < 0.6 * error(False)


def test_without_compensation_or_lmbda_every_weight_takes_the_nearest_value():
    w, h, g, values, bits = problem(4)
    order, factor = inverse_factor(jnp.asarray(h))
    index, _ = compensated_values(w, order, factor, jnp.asarray(g), jnp.asarray(values), jnp.asarray(bits), 0.0, False)
    np.testing.assert_array_equal(index, np.abs(w[..., None] - values).argmin(-1))


def test_an_infinite_cost_forbids_a_value():
    w, h, g, values, bits = problem(5)
    bits[::2] = np.inf
    order, factor = inverse_factor(jnp.asarray(h))
    index, _ = compensated_values(w, order, factor, jnp.asarray(g), jnp.asarray(values), jnp.asarray(bits), 1.0)
    assert (np.asarray(index) % 2 == 1).all()


def test_a_higher_lmbda_takes_fewer_bits():
    w, h, _, values, _ = problem(6, rows=100)
    order, factor = inverse_factor(jnp.asarray(h))
    bits = jnp.abs(jnp.arange(9.0) - 4) + 1

    def spent(lmbda):
        index, _ = compensated_values(w, order, factor, jnp.ones(100), jnp.asarray(values), bits, lmbda)
        return float(bits[index].sum())

    assert spent(0.0) > spent(10.0) > spent(1000.0)


def test_it_maps_over_groups():
    problems = [problem(s) for s in (7, 8)]
    stacked = [np.stack(x) for x in zip(*problems, strict=True)]
    order, factor = jax.jit(jax.vmap(feedback.inverse_factor))(stacked[1])
    run = jax.jit(jax.vmap(compensated_values, in_axes=(0, 0, 0, 0, None, None, None)))
    index, _ = run(stacked[0], order, factor, stacked[2], jnp.asarray(problems[0][3]), jnp.asarray(problems[0][4]), 0.3)
    for i, (w, h, g, values, _) in enumerate(problems):
        one = inverse_factor(jnp.asarray(h))
        alone, _ = compensated_values(w, *one, jnp.asarray(g), jnp.asarray(values), jnp.asarray(problems[0][4]), 0.3)
        assert index[i].tolist() == alone.tolist()
