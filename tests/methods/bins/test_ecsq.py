"""Entropy-constrained scalar quantization against a plain NumPy alternation, and the properties that the optimum must have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import bits, decode
from bqjax.core.rules import Rule
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import Bins, gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant

rng = np.random.default_rng(0)
W = (0.1 * rng.standard_normal((60, 50))).astype(np.float32)
H = rng.exponential(size=W.shape).astype(np.float32) ** 2
PARAMS = {"w": jnp.asarray(W), "b": jnp.zeros(5)}
STATS = gaussian_bins(PARAMS, 8)


def reference(w: np.ndarray, h: np.ndarray, edges: np.ndarray, lmbda: float, floor: float, iterations: int):
    """The alternation written out in float64."""
    w, h = w.reshape(-1).astype(np.float64), h.reshape(-1).astype(np.float64)
    scale = h.mean()
    h = h / scale + floor
    k = len(edges) + 1
    index = np.searchsorted(edges, w, side="right")

    def values(index: np.ndarray) -> np.ndarray:
        mass = np.bincount(index, h, minlength=k)
        return np.bincount(index, h * w, minlength=k) / np.where(mass > 0, mass, 1.0)

    for _ in range(iterations):
        share = np.bincount(index, minlength=k) / w.size
        with np.errstate(divide="ignore"):
            length = -np.log2(share)
        cost = h[:, None] / 2 * (w[:, None] - values(index)) ** 2
        cost = np.where(share > 0, cost + lmbda / scale * np.where(share > 0, length, 0.0), np.inf)
        index = cost.argmin(1)
    return values(index)[index]


@pytest.mark.parametrize("lmbda", [0.0, 0.5 / 8000, 5.0 / 8000])
def test_agrees_with_the_alternation_written_out(lmbda):
    found = decode(bin_and_quant_ecsq(PARAMS, STATS, {"w": H}, lmbda, iterations=6))["w"]
    expected = reference(W, H, np.asarray(STATS["w"].edges), lmbda, 0.02, 6).reshape(W.shape)
    # Ties within rounding may fall either way; a wrong rule would move far more than a few weights.
    assert np.mean(np.abs(np.asarray(found) - expected) > 1e-5) < 2e-3


def test_at_lmbda_0_without_iterations_equal_importance_gives_bin_means():
    plain = decode(bin_and_quant(PARAMS, STATS))["w"]
    found = decode(bin_and_quant_ecsq(PARAMS, STATS, {"w": np.ones_like(W)}, 0.0, iterations=0))["w"]
    np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_a_higher_lmbda_takes_fewer_bits_and_loses_more():
    sizes, errors = [], []
    for lmbda in (0.0, 1.25e-4, 5e-4, 2e-3):
        tree = bin_and_quant_ecsq(PARAMS, STATS, {"w": H}, lmbda)
        sizes.append(bits(tree, "entropy"))
        errors.append(float((H * np.square(np.asarray(decode(tree)["w"]) - W)).sum()))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.6 * sizes[0]
    assert errors == sorted(errors)


def test_important_weights_move_less():
    moved = np.abs(np.asarray(decode(bin_and_quant_ecsq(PARAMS, STATS, {"w": H}, 5e-4))["w"]) - W)
    top = np.quantile(H, 0.9) < H
    assert moved[top].mean() < 0.5 * moved[~top].mean()


def test_beats_plain_bins_of_the_same_entropy():
    tree = bin_and_quant_ecsq(PARAMS, STATS, {"w": H}, 2.5e-4)
    error = float((H * np.square(np.asarray(decode(tree)["w"]) - W)).sum())
    for n in range(2, 9):
        plain = bin_and_quant(PARAMS, gaussian_bins(PARAMS, n))
        if bits(plain, "entropy") >= bits(tree, "entropy"):
            assert error < float((H * np.square(np.asarray(decode(plain)["w"]) - W)).sum())
            return
    pytest.fail("no plain bins of at least this entropy to compare with")


def test_an_extreme_lmbda_leaves_one_value():
    assert bin_and_quant_ecsq(PARAMS, STATS, {"w": H}, 1e12)["w"].k == 1


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_importance_of_any_scale_gives_the_same_bins(scale):
    # Scaling importance and lmbda alike changes nothing.
    a = bin_and_quant_ecsq(PARAMS, STATS, {"w": H}, 2.5e-4)["w"]
    b = bin_and_quant_ecsq(PARAMS, STATS, {"w": (H * np.float32(scale)).astype(np.float32)}, 2.5e-4 * scale)["w"]
    assert np.mean(np.asarray(a.indices) != np.asarray(b.indices)) < 1e-3


def test_importance_of_zero_everywhere_is_uniform_importance():
    tree = bin_and_quant_ecsq(PARAMS, STATS, {"w": np.zeros_like(W)}, 0.0)
    assert np.isfinite(np.asarray(decode(tree)["w"])).all() and tree["w"].k == 8


def test_jit_equals_eager_up_to_unused_entries():
    eager = bin_and_quant_ecsq(PARAMS, STATS, {"w": H}, 4.0)
    jitted = jax.jit(bin_and_quant_ecsq)(PARAMS, STATS, {"w": H}, 4.0)
    np.testing.assert_array_equal(decode(eager)["w"], decode(jitted)["w"])
    assert jitted["w"].k == 8


def test_a_group_shares_its_codebook_and_its_costs():
    params = {"a": jnp.asarray(W[:20]), "c": jnp.asarray(W[20:])}
    stats = gaussian_bins(params, 8, [Rule("*", group="g")])
    tree = bin_and_quant_ecsq(params, stats, {"a": H[:20], "c": H[20:]}, 2.0)
    np.testing.assert_array_equal(tree["a"].codebook, tree["c"].codebook)
    joined = bin_and_quant_ecsq(PARAMS, {"w": Bins(stats["a"].edges)}, {"w": H}, 2.0)
    np.testing.assert_array_equal(np.concatenate([tree["a"].indices, tree["c"].indices]), joined["w"].indices)
    tree["a"].validate("a")


@pytest.mark.parametrize(
    ("importance", "lmbda", "floor", "match"),
    [
        ({}, 1.0, 0.02, "'w' has no importance"),
        ({"w": H[:3]}, 1.0, 0.02, "importance of 'w' must have shape"),
        ({"w": H}, -1.0, 0.02, "lmbda must not be negative"),
        ({"w": H}, float("nan"), 0.02, "lmbda must not be negative"),
        ({"w": H}, 1.0, -0.1, "floor must not be negative"),
        ({"w": -H}, 1.0, 0.02, "importance of 'w' must be finite and not negative"),
        ({"w": H * np.nan}, 1.0, 0.02, "importance of 'w' must be finite and not negative"),
    ],
)
def test_bad_input_is_named(importance, lmbda, floor, match):
    with pytest.raises(ValueError, match=match):
        bin_and_quant_ecsq(PARAMS, STATS, importance, lmbda, floor=floor)
