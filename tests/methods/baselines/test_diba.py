"""DiBA against brute force: single bits, least squares, and the error of every step."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from bqjax.core.leaves import decode
from bqjax.core.rules import Rule
from bqjax.methods.baselines import diba as module
from bqjax.methods.baselines.diba import DiBAConfig, diba_factorize

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
W = RNG.standard_normal((14, 11)).astype(np.float32)


def fitted(w=W, **settings):
    leaf = diba_factorize({"w": w}, key=KEY, config=DiBAConfig(**settings))["w"]
    leaf.validate()
    return leaf


def left_over(leaf, w=W):
    return float(np.square(np.asarray(decode(leaf), np.float64) - w).sum())


def product(rows, left, middle, right, columns):
    return rows[:, None] * ((left * middle) @ right) * columns


def test_every_round_leaves_no_more():
    errors = [left_over(fitted(middle=6, rounds=r)) for r in (0, 1, 2, 4, 8, 30)]
    assert errors[0] < 0.7 * np.square(W).sum()
    for before, after in itertools.pairwise(errors):
        assert after <= before * (1 + 1e-4)
    assert errors[-1] < 0.99 * errors[0]


def test_no_single_bit_would_leave_less():
    leaf = fitted(middle=6, rounds=30)
    factors = [np.asarray(x, np.float64) for x in (leaf.rows, leaf.left, leaf.middle, leaf.right, leaf.columns)]
    np.testing.assert_allclose(product(*factors), decode(leaf), rtol=1e-5, atol=1e-6)
    best = np.square(product(*factors) - W).sum()
    for which in (1, 3):
        for at in np.ndindex(factors[which].shape):
            factors[which][at] = 1 - factors[which][at]
            assert np.square(product(*factors) - W).sum() > best * (1 - 1e-4)
            factors[which][at] = 1 - factors[which][at]


def random_factors(k=20):
    """More terms than are tested at a time, and not a multiple of those."""
    m, n = W.shape
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 2, (m, k)), rng.integers(0, 2, (k, n))
    parts = rng.normal(size=m), left, rng.normal(size=k), right, rng.normal(size=n)
    return [np.asarray(x, np.float32) for x in parts]


def test_bits_are_tested_one_by_one():
    rows, left, middle, right, columns = random_factors()
    terms = middle[:, None] * right * columns
    got = jax.jit(module._bits)(W, left, rows, terms)
    expected = left.astype(np.float64)
    for t in range(left.shape[1]):
        for i in range(W.shape[0]):
            errors = []
            for bit in (0, 1):
                expected[i, t] = bit
                errors.append(np.square(W[i] - rows[i] * (expected[i] @ terms)).sum())
            expected[i, t] = errors[1] < errors[0]
    np.testing.assert_array_equal(got, expected)


def test_diagonals_are_those_of_least_squares():
    rows, left, middle, right, columns = (x.astype(np.float64) for x in random_factors(5))
    left[2] = 0
    inner = left @ (middle[:, None] * right * columns)
    terms = (middle[:, None] * right * columns).astype(np.float32)
    got = module._scales(W, left.astype(np.float32), terms, rows.astype(np.float32))
    expected = [np.linalg.lstsq(inner[i][:, None], W[i], rcond=None)[0][0] if i != 2 else rows[2] for i in range(14)]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    design = np.stack([np.outer(rows * left[:, t], right[t] * columns).ravel() for t in range(5)], 1)
    start = module._Factors(*(np.float32(x) for x in (rows, left, middle, right, columns)))
    np.testing.assert_allclose(module._middle(W, start), np.linalg.lstsq(design, W.ravel(), rcond=None)[0], rtol=1e-2, atol=1e-3)


def test_a_matrix_of_one_term_comes_out():
    rng = np.random.default_rng(2)
    left, right = (rng.random(9) < 0.7) * rng.normal(size=9), (rng.random(7) < 0.7) * rng.normal(size=7)
    for scale in (1, 1e-20, 1e18):
        w = np.outer(left, right * scale).astype(np.float32)
        np.testing.assert_allclose(decode(fitted(w, middle=1)), w, rtol=1e-4)
    zeros = fitted(np.zeros((9, 7), np.float32), middle=1)
    assert not decode(zeros).any()


def test_the_middle_dimension_follows_from_bits():
    assert DiBAConfig(bits=0.5).dimension(300, 100) == round(0.5 * 300 * 100 / 400)
    assert DiBAConfig(bits=1e-6).dimension(300, 100) == 1
    assert DiBAConfig(middle=9).dimension(300, 100) == 9


def test_refusals():
    for changes in ({"bits": 0}, {"bits": float("inf")}):
        with pytest.raises(ValueError, match="bits must be positive and finite"):
            DiBAConfig(**changes)
    for changes in ({"middle": 0}, {"middle": 2**17}, {"middle": 1.5}, {"rounds": -1}, {"rounds": True}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} must be an integer from"):
            DiBAConfig(**changes)
    with pytest.raises(ValueError, match=r"leaf 'w': bits 1000000\.0 of a 14 x 11 matrix need a middle dimension of"):
        fitted(bits=1e6)
    with pytest.raises(ValueError, match="'w' is in group 'g', but factors are not shared"):
        diba_factorize({"w": W}, [Rule("w", group="g")], key=KEY)
    with pytest.raises(ValueError, match="rule 'w': the setting must be a DiBAConfig, got 4"):
        diba_factorize({"w": W}, [Rule("w", 4)], key=KEY)
    with pytest.raises(ValueError, match="'w' is of integers, int8"):
        diba_factorize({"w": W.astype(np.int8)}, [Rule("w")], key=KEY)
    with pytest.raises(ValueError, match=r"'b' of shape \(3,\) is no matrix"):
        diba_factorize({"b": W[0, :3]}, [Rule("b")], key=KEY)
    with pytest.raises(ValueError, match="'w' holds 1 NaN or infinite"):
        fitted(np.where(W.max() > W, W, np.nan))
