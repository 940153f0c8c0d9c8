"""Masks against sorting in NumPy, gradual pruning in an optax chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bqjax.core.rules import Rule
from bqjax.methods.baselines.pruning import GradualPruning, gradual_pruning, magnitude_masks, prune


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_sorting(w, count):
    mask = np.ones(w.size, bool)
    mask[np.argsort(np.abs(w.ravel().astype(np.float64)), kind="stable")[:count]] = False
    return mask.reshape(w.shape)


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.999])
def test_masks_are_those_of_sorting(sparsity):
    few = np.random.default_rng(1).choice(np.float32([-1, 1, 0.5, 0, 2]), (20, 30))  # many of one size: the first go
    for w in (weights(20, 30), few, jnp.asarray(weights(20, 30), jnp.bfloat16)):
        count = min(round(sparsity * w.size), w.size - 1)
        mask = magnitude_masks({"w": w}, sparsity)["w"]
        np.testing.assert_array_equal(mask, by_sorting(np.asarray(w), count))
        assert (~mask).sum() == count


def test_groups_are_compared_with_one_another():
    tree = {"a": weights(20, 30), "b": weights(20, 30, seed=1) * 3, "c": np.ones((20, 30), np.float32)}
    masks = magnitude_masks(tree, 0.5, [Rule("[ab]", group="all"), Rule("c", 0.25)])
    both = by_sorting(np.concatenate([tree["a"].ravel(), tree["b"].ravel()]), 600)
    np.testing.assert_array_equal(np.concatenate([masks["a"].ravel(), masks["b"].ravel()]), both)
    np.testing.assert_array_equal(masks["c"].ravel(), np.arange(600) >= 150)


def test_of_equals_in_two_leaves_those_of_the_first_go_first():
    tree = {"a": np.float32([[1, 1, 5, 6]]), "b": np.float32([[1, 1, 1, 7]])}
    masks = magnitude_masks(tree, 0.5, [Rule("*", group="g")])
    assert masks["a"].tolist() == [[False, False, True, True]]
    assert masks["b"].tolist() == [[False, False, True, True]]


def test_pruning_and_its_gradient():
    tree = {"w": jnp.asarray(weights(4, 5)), "b": jnp.ones(5)}
    masks = magnitude_masks(tree, 0.4)
    grads = jax.grad(lambda p: sum(x.sum() for x in jax.tree.leaves(prune(p, masks))))(tree)
    assert prune(tree, masks)["b"] is tree["b"]
    np.testing.assert_array_equal(grads["w"], masks["w"])
    assert int((prune(tree, masks)["w"] == 0).sum()) == 8
    traced = jax.jit(lambda p, s: magnitude_masks(p, s))(tree, 0.4)
    np.testing.assert_array_equal(traced["w"], masks["w"])


def test_the_schedule_is_the_papers():
    schedule = GradualPruning(final=0.9, initial=0.1, begin=10, end=60, every=20)
    for step in (0, 10, 25, 59, 60, 90):
        t = min(max(step, 10), 60)
        assert float(schedule.sparsity(step)) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (t - 10) / 50) ** 3, rel=1e-5)
    assert [t for t in range(100) if schedule.due(t)] == [10, 30, 50, 60]


def test_gradual_pruning_in_a_chain():
    params = {
        "a": {"kernel": jnp.asarray(weights(8, 8)), "bias": jnp.ones(8)},
        "b": jnp.asarray(weights(8, 8, seed=1), jnp.bfloat16),
    }
    target = jax.tree.map(lambda x: x * 0.9, params)
    schedule = GradualPruning(final=0.75, begin=2, end=8, every=3)
    tx = optax.chain(optax.adam(1e-2), gradual_pruning(schedule, [Rule("a/kernel"), Rule("b", 0.5)]))

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: sum(jnp.square(x - y).sum() for x, y in zip(*map(jax.tree.leaves, (p, target)), strict=True)))(
            params
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, zeros = tx.init(params), []
    gone = jnp.zeros((8, 8), bool)
    for t in range(12):
        before = params["a"]["kernel"]
        params, state = step(params, state)
        kernel = params["a"]["kernel"]
        zeros.append((int((kernel == 0).sum()), int((params["b"] == 0).sum())))
        assert not (gone & (kernel != 0)).any()  # what is pruned stays so
        # Each weight pruned now was, after its step, among the smallest: none that stays is much smaller.
        if t == 5:
            new = (kernel == 0) & ~gone
            assert new.any() and float(jnp.abs(before)[new].max()) < float(jnp.abs(kernel)[kernel != 0].min()) + 0.05
        gone = kernel == 0
    due = [round(float(schedule.sparsity(t)) * 64) for t in range(12)]
    assert zeros[1] == (0, 0)
    assert [z[0] for z in zeros] == [0, 0, 0, 0, 0, due[5], due[5], due[5], 48, 48, 48, 48]
    assert zeros[-1] == (48, 32)
    assert params["b"].dtype == jnp.bfloat16 and not (params["a"]["bias"] == 0).any()
    np.testing.assert_array_equal(state[-1].masks["a/kernel"], params["a"]["kernel"] != 0)


def test_refusals():
    tree = {"w": weights(4, 4), "v": weights(4, 4) * 1e-3}
    for sparsity in (-0.1, 1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
            magnitude_masks(tree, sparsity)
        with pytest.raises(ValueError, match=r"rule 'w': sparsity must be in \[0, 1\)"):
            gradual_pruning(GradualPruning(final=0.5, begin=0, end=1), [Rule("w", sparsity)])
        with pytest.raises(ValueError, match=r"final must be in \[0, 1\)"):
            GradualPruning(final=sparsity, begin=0, end=1)
    with pytest.raises(ValueError, match=r"leaf 'v' would be all zero at sparsity 0\.5"):
        magnitude_masks(tree, 0.5, [Rule("*", group="all")])
    with pytest.raises(ValueError, match="leaf 'z' would be all zero"):
        magnitude_masks({"z": np.zeros((2, 2), np.float32)}, 0.5)
    with pytest.raises(ValueError, match="'w' holds 16 NaN"):
        magnitude_masks({"w": tree["w"] * np.nan}, 0.5)
    with pytest.raises(ValueError, match="'w' is of integers"):
        magnitude_masks({"w": np.ones((2, 2), np.int8)}, 0.5, [Rule("w")])
    with pytest.raises(ValueError, match="different settings"):
        magnitude_masks(tree, 0.5, [Rule("w", 0.1, group="g"), Rule("v", 0.2, group="g")])
    with pytest.raises(ValueError, match=r"mask of leaf 'w' has shape \(4,\), the leaf \(4, 4\)"):
        prune(tree, {"w": np.ones(4, bool)})
    with pytest.raises(ValueError, match="no leaf is named 'x'"):
        prune(tree, {"x": np.ones(4, bool)})
    with pytest.raises(ValueError, match="end must be later"):
        GradualPruning(final=0.5, begin=3, end=3)
    with pytest.raises(ValueError, match="every must be at least 1"):
        GradualPruning(final=0.5, begin=0, end=3, every=0)
    with pytest.raises(ValueError, match="power must be positive"):
        GradualPruning(final=0.5, begin=0, end=3, power=0)
    tx = gradual_pruning(GradualPruning(final=0.5, begin=0, end=1))
    with pytest.raises(ValueError, match="looks at the weights"):
        tx.update(tree, tx.init(tree))
