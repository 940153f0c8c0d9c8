"""The search's target: bytes of layers as files have them, and codes that cost least by distortion and bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bqjax.tflite.codes.layer_stats import Measured, layer_stats
from bqjax.tflite.micro.choice import ENTRY_BYTES, Weight, candidates, choose
from bqjax.tflite.micro.target import MicroTarget

SETTINGS = {"compensate": True, "passes": 2, "step_scale": 1.0}


@pytest.fixture(scope="module")
def layer():
    """Codes of a dense layer whose inputs are correlated, and what is known of it."""
    rng = np.random.default_rng(0)
    codes = np.clip(np.rint(rng.laplace(0, 25, (1, 24, 32))), -127, 127).astype(np.int64)
    inputs = rng.normal(0, 1, (400, 32)) @ rng.normal(0, 0.4, (32, 32))
    second = (inputs.T @ inputs / 400)[None]
    importance = np.broadcast_to(rng.uniform(0.5, 2, (1, 24, 1)) * np.diagonal(second[0])[None, None], (1, 24, 32))
    return codes, layer_stats(Measured(second.astype(np.float32), inputs.mean(0)[None].astype(np.float32), 400, importance))


@pytest.fixture(scope="module")
def at(layer):
    codes, stats = layer
    return MicroTarget(widths=(2, 3, 4), channel_widths=(2,)).prepared(codes, 0, stats, SETTINGS)


def test_a_higher_price_takes_fewer_bytes_and_costs_more(at, layer):
    codes, _ = layer
    assert at(0.0) is None
    found = [layer for layer in map(at, np.geomspace(1, 1e4, 6)) if layer is not None]
    assert len(found) > 2
    assert all(a.bits >= b.bits and a.distortion <= b.distortion * 1.001 for a, b in itertools.pairwise(found))
    assert found[-1].bits / codes.size < 5 < 8
    for one in found:
        assert np.abs(one.codes).max() <= 127 and len(np.unique(one.codes)) < len(np.unique(codes))


def test_bytes_are_those_of_the_encoding_that_a_file_takes(at):
    for lmbda in (30.0, 300.0, 3000.0):
        new = at(lmbda)
        weight = Weight(new.codes[0].astype(np.int8), np.zeros((1, 1), np.int8), 0)
        encoded = choose({0: weight})[0][0]
        stored = len(encoded.data) + len(encoded.ancillary) + ENTRY_BYTES
        assert stored <= new.bits / 8 + 24  # words of the Huffman stream, bytes that no table needs
        assert len(candidates(weight)) >= 3


def test_tables_are_no_worse_than_even_ones(layer):
    """With a table alone, of weighted means, against rounding to evenly spread values under the same curvature."""
    codes, stats = layer
    (new,) = [MicroTarget(widths=(3,), channel_widths=(), steps=()).prepared(codes, 0, stats, SETTINGS)(1e6)]
    even = np.rint(np.linspace(codes.min(), codes.max(), 8))
    rounded = even[np.abs(codes[..., None] - even).argmin(-1)]
    factor = np.asarray(stats.factor[0], np.float64)
    h = np.linalg.inv(factor.T @ factor)
    order = np.asarray(stats.order[0])

    def distortion(v):
        e = (codes - v)[0][:, order].astype(float)
        return float((np.asarray(stats.importance[0]) * np.einsum("ri,ij,rj->r", e, h, e)).sum() / 2)

    assert len(np.unique(new.codes)) <= 8
    np.testing.assert_allclose(distortion(new.codes), new.distortion, rtol=1e-3)
    assert new.distortion < 0.6 * distortion(rounded)


def test_limits_and_bad_settings(layer):
    codes, stats = layer
    assert MicroTarget(arena=100).prepared(codes, 0, stats, SETTINGS)(1e6) is None
    with pytest.raises(ValueError, match="look-up indices have 1 to 7 bits"):
        MicroTarget(widths=(8,))
    assert "MicroTarget(widths" in repr(MicroTarget())
