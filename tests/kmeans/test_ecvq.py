"""Entropy-constrained vector quantization against a plain loop in NumPy."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from bqjax.core.blocks import to_blocks
from bqjax.core.leaves import Clustered, bits
from bqjax.kmeans import ecvq, tiles
from bqjax.kmeans.ecvq import ecvq_refine
from bqjax.methods.gwk.cluster import GWKConfig, gwk_cluster

RNG = np.random.default_rng(0)
# 14 inputs in blocks of 3: the last block of each row is padded.
W = RNG.normal(size=(14, 30)).astype(np.float32)
H = RNG.uniform(0.1, 4.0, size=W.shape).astype(np.float32)


@functools.cache
def start(d=3, n_bits=3):
    return gwk_cluster({"w": W}, None, key=jax.random.key(0), config=GWKConfig(bits=n_bits, cv=d, pw=d))[0]["w"]


def by_hand(leaf, lmbda, floor, iterations):
    """The same alternation, entry by entry in float64."""
    x = np.asarray(to_blocks(W, leaf.axis_order, leaf.d), np.float64)
    real = np.asarray(to_blocks(np.ones_like(W), leaf.axis_order, leaf.d)) > 0
    h = np.where(real, np.asarray(to_blocks(H, leaf.axis_order, leaf.d), np.float64) / H.mean() + floor, 0)
    bit = lmbda / float(H.mean())
    codebook, index = np.asarray(leaf.codebook, np.float64), np.asarray(leaf.indices).astype(int)

    def means():
        new = codebook.copy()
        for j in range(len(codebook)):
            mass = h[index == j].sum(0)
            new[j] = np.where(mass > 0, (h * x)[index == j].sum(0) / np.where(mass > 0, mass, 1), codebook[j])
        return new

    for _ in range(iterations):
        codebook = means()
        share = np.bincount(index, minlength=len(codebook)) / len(index)
        costs = [bit * -np.log2(s) if s > 0 else np.inf for s in share]
        cost = np.array([(h / 2 * np.square(x - c)).sum(1) + p for c, p in zip(codebook, costs, strict=True)])
        index = cost.argmin(0)
    codebook = means()
    used = np.unique(index)
    return codebook[used], np.searchsorted(used, index)


@pytest.mark.parametrize("lmbda", [0.0, 0.0375, 0.375])
def test_against_a_loop(lmbda):
    leaf = ecvq_refine(W, H, start(), lmbda, floor=0.1, iterations=4)
    codebook, indices = by_hand(start(), lmbda, 0.1, 4)
    np.testing.assert_array_equal(leaf.indices, indices)
    np.testing.assert_allclose(leaf.codebook, codebook, rtol=2e-4, atol=1e-5)
    leaf.validate("w")


def test_a_higher_lmbda_takes_bits_and_gives_error():
    made = [ecvq_refine(W, np.ones_like(W), start(), lmbda) for lmbda in (0.0, 0.0375, 0.375)]
    sizes = [bits(leaf, "entropy") for leaf in made]
    errors = [float(np.square(np.asarray(leaf.decode()) - W).sum()) for leaf in made]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.85 * sizes[0]
    assert errors == sorted(errors)
    assert ecvq_refine(W, np.ones_like(W), start(), 1e9).k == 1


def test_tiles_change_nothing(monkeypatch):
    whole = ecvq_refine(W, H, start(), 0.0375, floor=0.1, iterations=4)
    monkeypatch.setattr(tiles, "_TILE", 16)  # ten tiles, the last one not full
    ecvq.ecvq_solve.clear_cache()
    tiled = ecvq_refine(W, H, start(), 0.0375, floor=0.1, iterations=4)
    ecvq.ecvq_solve.clear_cache()
    np.testing.assert_array_equal(tiled.indices, whole.indices)
    np.testing.assert_allclose(tiled.codebook, whole.codebook, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lmbda": -1.0}, "lmbda must be finite and not negative, got -1.0"),
        ({"lmbda": float("nan")}, "lmbda must be finite"),
        ({"floor": -0.1}, "floor must be finite and not negative"),
        ({"importance": H[:3]}, r"importance must have the leaf's shape \(14, 30\), got \(3, 30\)"),
        ({"weight": W.T}, r"weight must have the leaf's shape"),
        ({"importance": -H}, "importance must be finite and not negative"),
        ({"importance": H * np.nan}, "importance must be finite and not negative"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"weight": W, "importance": H, "start": start(), "lmbda": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        ecvq_refine(**arguments)


def test_importance_of_zero_everywhere_is_equal_importance():
    leaf = ecvq_refine(W, np.zeros_like(W), start(), 0.0, floor=0.5)
    assert isinstance(leaf, Clustered) and np.isfinite(np.asarray(leaf.codebook)).all()


def test_scalar_and_vector_steps_agree():
    """Weights as points of one coordinate, against blocks of two of which the second is padding."""
    x, h = W.reshape(-1), H.reshape(-1)
    first, codebook = (np.arange(x.size) % 5).astype(np.uint8), np.zeros((5, 1), np.float32)
    scalar = ecvq.ecvq_solve(x, h, codebook[:, 0], first, 0.05, floor=0.1, iterations=5)
    pad, mask = np.zeros_like(x), np.stack([np.ones_like(x, bool), np.zeros_like(x, bool)], 1)
    points, importance = np.stack([x, pad], 1), np.stack([h, pad], 1)
    vector = ecvq.ecvq_solve(points, importance, np.repeat(codebook, 2, 1), first, 0.05, floor=0.1, iterations=5, mask=mask)
    np.testing.assert_array_equal(scalar[1], vector[1])
    np.testing.assert_allclose(scalar[0], vector[0][:, 0], rtol=1e-5)
