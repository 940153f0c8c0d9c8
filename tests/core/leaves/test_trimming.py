"""Trimming of codebooks: entries without indices go, equal ones become one, and every weight keeps its value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import clustered, trim_codebook


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("d", [None, 1, 2])
def test_against_a_loop(dtype, d, monkeypatch):
    monkeypatch.setattr(clustered, "_PIECE", 7)  # many pieces
    rng = np.random.default_rng(0)
    for _ in range(10):
        codebook = rng.integers(-1, 2, 12 if d is None else (12, d)).astype(dtype)
        indices = rng.integers(0, 12, (6, 5)).astype(np.uint8)
        kept, new = trim_codebook(codebook, indices)
        used = [np.atleast_1d(codebook[j]).tolist() for j in range(12) if j in indices]
        expected = [row for i, row in enumerate(used) if row not in used[:i]]
        assert [np.atleast_1d(row).tolist() for row in kept] == expected
        np.testing.assert_array_equal(kept[new], codebook[indices])
        assert (kept.dtype, kept.ndim, new.dtype, new.shape) == (dtype, codebook.ndim, np.uint8, indices.shape)


def test_zeros_of_both_signs_are_one_entry():
    codebook = np.float32([[1, 2], [1, 3], [1, 2], [0, 0], [-0.0, 0]])
    kept, new = trim_codebook(codebook, np.array([4, 2, 1, 0, 3], np.uint8))
    np.testing.assert_array_equal(kept, [[1, 2], [1, 3], [0, 0]])
    np.testing.assert_array_equal(kept[new], codebook[[4, 2, 1, 0, 3]])


def test_fewer_entries_take_a_shorter_type():
    codebook, indices = np.arange(300, dtype=np.float32), np.array([299, 0, 299], np.uint16)
    kept, new = trim_codebook(codebook, indices)
    assert kept.tolist() == [0, 299] and new.tolist() == [1, 0, 1] and new.dtype == np.uint8


def test_jax_arrays_stay_so_and_tracers_are_handed_back():
    codebook, indices = jnp.float32([[1], [2], [3]]), jnp.array([2, 0], jnp.uint8)
    assert all(isinstance(a, jax.Array) for a in trim_codebook(codebook, indices))
    whole, same = trim_codebook(codebook, jnp.array([2, 0, 1], jnp.uint8))
    assert whole is codebook and same.tolist() == [2, 0, 1]
    assert jax.jit(trim_codebook)(codebook, indices)[0].shape == (3, 1)
