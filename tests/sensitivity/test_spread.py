"""Sums over batches and draws against a plain loop, and batches cut to smaller ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity.spread import smaller, summed

BATCHES = [np.arange(float(n), dtype=np.float32) for n in (3, 5, 3)]


def test_every_batch_and_draw_counts_once_with_a_key_of_its_own():
    def function(params, batch, key):
        return {"sum": params * batch.sum(), "noise": jax.random.uniform(key)}

    key = jax.random.key(0)
    found = summed(function, jnp.float32(2), BATCHES, key=key, draws=2)
    assert float(found["sum"]) == 2 * 2 * sum(float(b.sum()) for b in BATCHES)
    noise = sum(float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(6))
    np.testing.assert_allclose(found["noise"], noise, rtol=1e-6)


@pytest.mark.parametrize(("most", "expected"), [(4, [4, 4, 4]), (5, [4, 4, 4]), (7, [6, 6]), (12, [12]), (11, [6, 6])])
def test_batches_are_cut_into_equal_parts_where_they_can_be(most, expected):
    x = np.arange(24).reshape(12, 2)
    cut, sizes = smaller([{"x": x, "y": x[:, 0]}], [12], most)
    assert sizes == expected == [len(b["y"]) for b in cut]
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in cut]), x)


def test_what_does_not_divide_has_a_smaller_last_part():
    assert smaller([np.zeros((13, 2))], [13], 5)[1] == [5, 5, 3]


def test_a_batch_with_other_arrays_stays_whole():
    batch = {"x": np.zeros((12, 2)), "scale": np.float32(1)}
    cut, sizes = smaller([batch], [12], 4)
    assert cut[0] is batch and sizes == [12]
