"""Trimming of codebooks against the function for numbers."""

from __future__ import annotations

import numpy as np
import pytest
from bqjax.related import trimming

from bqjax.core.leaves import trim_codebook
from bqjax.core.leaves.clustered import in_use


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_of_numbers_it_is_trim_codebook(dtype, monkeypatch):
    monkeypatch.setattr(trimming, "_PIECE", 7)  # many pieces
    rng = np.random.default_rng(0)
    for _ in range(10):
        codebook = rng.integers(-3, 3, 12).astype(dtype)
        indices = rng.integers(0, 12, 30).astype(np.uint8)
        expected, expected_indices = trim_codebook(codebook, indices)
        got, got_indices = in_use(codebook[:, None], indices)
        np.testing.assert_array_equal(got[:, 0], expected)
        np.testing.assert_array_equal(got_indices, expected_indices)
        assert (got.dtype, got_indices.dtype) == (expected.dtype, expected_indices.dtype)


def test_blocks():
    codebook = np.float32([[1, 2], [1, 3], [1, 2], [0, 0], [-0.0, 0]])
    got, indices = in_use(codebook, np.array([4, 2, 1, 0, 3], np.uint8))
    np.testing.assert_array_equal(got, [[1, 2], [1, 3], [0, 0]])
    np.testing.assert_array_equal(np.asarray(got)[np.asarray(indices)], codebook[[4, 2, 1, 0, 3]])
    whole, same = in_use(codebook[[0, 1]], np.array([1, 0], np.uint8))
    np.testing.assert_array_equal(whole, codebook[[0, 1]])
    assert same.tolist() == [1, 0]
