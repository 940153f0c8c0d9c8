"""Passes in pieces: what lies before, across and behind the borders of a piece."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.kmeans import segments
from bqjax.kmeans.tiles import tiled


@pytest.mark.parametrize("n", [5, 8, 21])
def test_pieces_cover_every_value_once(n, monkeypatch):
    monkeypatch.setattr(segments, "_PIECE", 8)
    x = np.arange(n, dtype=np.float32)
    np.testing.assert_array_equal(segments.map_pieces(lambda x: 2 * x, jnp.int32, x), 2 * x)
    total = segments.over_pieces(lambda t, start, x, y: t + (x * y).sum() + 0 * start, jnp.float32(0), x, x)
    assert float(total) == (x * x).sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_many_segments_in_pieces(weighted, monkeypatch):
    monkeypatch.setattr(segments, "_PIECE", 64)
    rng = np.random.default_rng(0)
    x, number = rng.integers(-9, 9, 150).astype(np.float32), rng.integers(0, 21, 150)
    weights = rng.integers(1, 5, 150).astype(np.float32) if weighted else None
    w = np.ones(150) if weights is None else weights
    offset = jnp.ones(20)
    got = segments.segment_sums(jnp.asarray(x), jnp.asarray(number), None if weights is None else jnp.asarray(weights), offset)
    np.testing.assert_array_equal(got.mass, np.bincount(number, w, 21)[:20])
    np.testing.assert_array_equal(got.residual, np.bincount(number, w * (x - 1), 21)[:20])


@pytest.mark.parametrize("n", [1, 4096, 4097, 9000])
def test_tiles_hold_every_point_once(n):
    a = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    tiles = np.asarray(tiled(jnp.asarray(a), lambda piece: piece + 1))
    flat = tiles.transpose(0, 2, 1).reshape(-1, 2)
    np.testing.assert_array_equal(flat[:n], a + 1)
    assert not flat[n:].any()
