"""Soft k-means and its gradients against the plain formula, finite differences in float64 and each other; DKM on trees."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bqjax.methods.baselines.dkm
from bqjax.core.blocks import output_first, to_blocks
from bqjax.core.leaves import decode
from bqjax.core.rules import Rule
from bqjax.methods.baselines.dkm import DKMConfig, dkm_forward, dkm_harden, dkm_start
from bqjax.methods.baselines.soft_kmeans import Layout, Solver, from_tiles, soft_kmeans, to_tiles

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# 50 rows of 11 weights in blocks of 2, the last of each with one weight of padding; in four tiles, the last not full.
N, D, K = 300, 2, 5
LAYOUT = Layout(N, D, 11, 4, 80)
REAL = np.broadcast_to((np.arange(N)[:, None] % 6 * 2 + np.arange(2)) < 11, (N, D))
X = np.where(REAL, RNG.standard_normal((N, D)), 0).astype(np.float32)
START = X[:K] + np.float32([[0, 0.1]])
SLOPE = np.where(REAL, RNG.standard_normal((N, D)), 0).astype(np.float32)
TEMPERATURE = 0.3


def plain(x, iterations, xp=np):
    """The formula as it stands, with the whole attention in memory: ``sum(SLOPE * y)``."""
    c = xp.asarray(START, x.dtype)
    real = xp.asarray(REAL, x.dtype)

    def attention(c):
        logits = -(((x[:, None] - c[None]) ** 2) * real[:, None]).sum(2) / TEMPERATURE
        a = xp.exp(logits - logits.max(1, keepdims=True))
        return a / a.sum(1, keepdims=True)

    for _ in range(iterations):
        a = attention(c)
        c = (a.T @ (x * real)) / (a.T @ real)
    return (attention(c) @ c * SLOPE).sum()


@functools.partial(jax.jit, static_argnums=1)
def ours(x, solver):
    def value(points):
        x = to_tiles(points, LAYOUT)
        y, codebook = soft_kmeans(x, jnp.asarray(START), jnp.float32(TEMPERATURE), LAYOUT, solver)
        return (from_tiles(y, LAYOUT) * SLOPE).sum(), codebook

    return jax.value_and_grad(value, has_aux=True)(x)


def test_gradients_are_those_of_the_unrolled_formula_and_of_finite_differences():
    (value, _), grad = ours(X, Solver(4, 0.0, False, 0))
    expected, expected_grad = jax.value_and_grad(lambda x: plain(x, 4, jnp))(jnp.asarray(X))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(grad, expected_grad, atol=2e-5 * np.abs(expected_grad).max())
    assert not np.asarray(grad)[~REAL].any()
    x = X.astype(np.float64)
    for i, j in [(0, 0), (7, 1), (123, 0), (299, 0)]:
        bump = np.zeros_like(x)
        bump[i, j] = 1e-5
        difference = (plain(x + bump, 4) - plain(x - bump, 4)) / 2e-5
        np.testing.assert_allclose(grad[i, j], difference, atol=2e-5 * np.abs(expected_grad).max())


def test_the_fixed_point_has_the_gradient_of_many_iterations():
    (_, codebook), grad = ours(X, Solver(400, 0.0, False, 0))
    (_, fixed), implicit = ours(X, Solver(400, 1e-6, True, K * D))
    np.testing.assert_allclose(fixed, codebook, atol=1e-4)
    largest = np.abs(grad).max()
    np.testing.assert_allclose(implicit, grad, atol=2e-3 * largest)
    x = X.astype(np.float64)
    bump = np.zeros_like(x)
    bump[42, 0] = 1e-4
    np.testing.assert_allclose(implicit[42, 0], (plain(x + bump, 400) - plain(x - bump, 400)) / 2e-4, atol=2e-3 * largest)
    # No steps of the solver: the Jacobian of the codebook is left out, which is another gradient of about the same direction.
    free = ours(X, Solver(400, 1e-6, True, 0))[1]
    assert np.abs(free - grad).max() > 0.02 * largest
    assert (free * grad).sum() > 0.9 * np.sqrt(np.square(free).sum() * np.square(grad).sum())


def test_iterations_end_when_settled():
    """Gradients are then those of the iterations that were done."""
    (_, early), grad_early = ours(X, Solver(4, 1e3, False, 0))
    (_, once), grad = ours(X, Solver(1, 0.0, False, 0))
    np.testing.assert_allclose(early, once, atol=1e-6)
    np.testing.assert_allclose(grad_early, grad, atol=1e-5)


@pytest.mark.parametrize("implicit", [False, True])
def test_bytes_kept_for_the_backward_pass(implicit):
    """At 4 bits and one weight a block; the attention of one iteration alone would be 64 bytes a weight."""
    n = 2**18
    config = DKMConfig(k=16, iterations=20, implicit=implicit)

    def loss(params, codebooks):
        return jnp.square(dkm_forward(params, codebooks, config=config)[0]["w"]).sum()

    shapes = {"w": jax.ShapeDtypeStruct((512, n // 512), jnp.float32)}, {"w": jax.ShapeDtypeStruct((16, 1), jnp.float32)}
    memory = jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes / n < 12


def tree():
    rng = np.random.default_rng(3)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {
        "conv": {"kernel": normal(3, 3, 2, 7), "bias": normal(7)},
        "fc": {"kernel": jnp.asarray(normal(16, 12) / 100, jnp.bfloat16)},
    }


CONFIG = DKMConfig(k=4, d=4)
RULES = [Rule("conv/kernel", DKMConfig(k=6, d=4)), Rule("fc/kernel"), Rule("*", skip=True)]


def test_on_trees_it_is_the_formula_for_each_leaf():
    params = tree()
    codebooks = dkm_start(params, RULES, key=KEY, config=CONFIG)
    soft, moved = jax.jit(lambda p, c: dkm_forward(p, c, RULES, config=CONFIG))(params, codebooks)
    assert soft["conv"]["bias"] is not None and jax.tree.map(jnp.shape, soft) == jax.tree.map(jnp.shape, params)
    assert soft["fc"]["kernel"].dtype == jnp.bfloat16
    w = params["conv"]["kernel"]
    x = np.asarray(to_blocks(w, output_first(4), 4), np.float64)
    real = np.asarray(to_blocks(np.ones_like(w), output_first(4), 4))
    temperature = w.var() * 6 ** (-2 / 4)
    c = np.asarray(codebooks["conv/kernel"], np.float64)

    def attention(c):
        logits = -(np.square(x[:, None] - c) * real[:, None]).sum(2) / temperature
        a = np.exp(logits - logits.max(1, keepdims=True))
        return a / a.sum(1, keepdims=True)

    for _ in range(5):
        c = (attention(c).T @ (x * real)) / (attention(c).T @ real)
    np.testing.assert_allclose(moved["conv/kernel"], c, atol=1e-3)
    got = np.asarray(to_blocks(soft["conv"]["kernel"], output_first(4), 4))
    np.testing.assert_allclose(got, attention(c) @ c * real, atol=1e-3)


@pytest.mark.parametrize("d", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_wide_layers_are_the_formula_where_they_lie(d, monkeypatch):
    """Their blocks are tiles as they are; the other layout must say the same."""
    w = RNG.standard_normal((6, 512)).astype(np.float32)
    config = DKMConfig(k=4, d=d, iterations=3)
    codebooks = dkm_start({"w": w}, key=KEY, config=config)

    def value(w):
        soft, moved = dkm_forward({"w": w}, codebooks, config=config)
        return jnp.square(soft["w"]).sum(), moved["w"]

    (here, moved), grad = jax.value_and_grad(value, has_aux=True)(jnp.asarray(w))
    with monkeypatch.context() as patched:
        patched.setattr(bqjax.methods.baselines.dkm, "in_place", lambda *_: None)
        bqjax.methods.baselines.dkm._drawn.clear_cache()
        (there, expected), expected_grad = jax.value_and_grad(value, has_aux=True)(jnp.asarray(w))
    bqjax.methods.baselines.dkm._drawn.clear_cache()
    assert not np.array_equal(grad, expected_grad)  # sums in another order: it was not the same program
    np.testing.assert_allclose(here, there, rtol=1e-5)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-4)


def test_scale_of_weights_does_not_matter():
    w = np.random.default_rng(1).standard_normal((20, 30)).astype(np.float32)
    config = DKMConfig(k=4)
    results = []
    for scale in (1.0, 2.0**-20):
        params = {"w": w * np.float32(scale)}
        soft, _ = jax.jit(lambda p, c: dkm_forward(p, c, config=config))(params, dkm_start(params, key=KEY, config=config))
        results.append(np.asarray(soft["w"]) / scale)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_cold_attention_is_hard_assignment():
    params = tree()
    params["fc"]["kernel"] = params["fc"]["kernel"].astype(jnp.float32)
    config = DKMConfig(k=4, temperature=1e-5, iterations=3)
    codebooks = dkm_start(params, key=KEY, config=config)
    soft, moved = jax.jit(lambda p, c: dkm_forward(p, c, config=config))(params, codebooks)
    hard = dkm_harden(params, moved, config=config)
    for layer in ("conv", "fc"):
        hard[layer]["kernel"].validate()
        np.testing.assert_allclose(soft[layer]["kernel"], decode(hard)[layer]["kernel"], atol=1e-4)
        np.testing.assert_allclose(moved[f"{layer}/kernel"], codebooks[f"{layer}/kernel"], atol=1e-3)


@pytest.mark.parametrize("implicit", [False, True])
def test_training_with_it(implicit):
    """The network's own loss moves weights and codebook so that the hardened network fits better than plain k-means."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((64, 16)) @ rng.standard_normal((16, 16)) / 4
    x, w = x.astype(np.float32), rng.standard_normal((16, 8)).astype(np.float32)
    y = x @ w
    config = DKMConfig(k=4, implicit=implicit, iterations=20 if implicit else 5)

    def loss(params, codebooks):
        soft, codebooks = dkm_forward(params, codebooks, config=config)
        return jnp.square(x @ soft["w"] - y).mean(), codebooks

    @jax.jit
    def step(params, codebooks):
        grads, codebooks = jax.grad(loss, has_aux=True)(params, codebooks)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), codebooks

    def error(params, codebooks):
        return np.square(x @ np.asarray(decode(dkm_harden(params, codebooks, config=config))["w"]) - y).mean()

    params = {"w": jnp.asarray(w)}
    codebooks = dkm_start(params, key=KEY, config=config)
    before = error(params, codebooks)
    for _ in range(200):
        params, codebooks = step(params, codebooks)
    assert error(params, codebooks) < 0.6 * before


def test_constant_leaves_and_entries_that_nothing_attends_to():
    config = DKMConfig(k=4)
    params = {"w": np.full((4, 4), 0.25, np.float32), "v": np.zeros((4, 4), np.float32)}
    codebooks = {"w": jnp.float32([[0.25], [0.25], [30], [-1]]), "v": jnp.zeros((4, 1))}

    def loss(params):
        soft, moved = dkm_forward(params, codebooks, config=config)
        return soft["w"].sum() + soft["v"].sum(), (soft, moved)

    grads, (soft, moved) = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(soft["w"], params["w"], atol=1e-6)
    assert moved["w"][2, 0] == 30
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    hard = dkm_harden(params, moved, config=config)
    assert [hard[name].k for name in "vw"] == [1, 1]


def test_refusals():
    for temperature in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            DKMConfig(temperature=temperature)
    for field in ("k", "d", "iterations"):
        with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1"):
            DKMConfig(**{field: 0})
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        DKMConfig(tolerance=-1)
    params = {"w": np.ones((4, 4), np.float32)}
    with pytest.raises(ValueError, match=r"'w' needs a codebook of shape \(16, 1\) from dkm_start\(\), got nothing"):
        dkm_forward(params, {})
    with pytest.raises(ValueError, match=r"'w' needs a codebook of shape \(16, 1\) .*, got \(4, 1\)"):
        dkm_forward(params, {"w": np.ones((4, 1))})
    with pytest.raises(ValueError, match="'w' has 16 blocks of 1, fewer than the 17 codebook entries"):
        dkm_start(params, key=KEY, config=DKMConfig(k=17))
    with pytest.raises(ValueError, match="codebooks are not shared"):
        dkm_start(params, [Rule("w", group="g")], key=KEY)
    with pytest.raises(ValueError, match="must be a DKMConfig, got 4"):
        dkm_start(params, [Rule("w", 4)], key=KEY)
    with pytest.raises(ValueError, match="'w' holds 1 NaN"):
        dkm_start({"w": np.float32([[np.nan, 1]])}, key=KEY)
