"""How candidates are dealt over devices and groups."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity.candidates import deal, stacked


@pytest.mark.parametrize(("n", "devices", "group"), [(1, 4, 1), (7, 2, 3), (70, 2, 1)])
def test_each_candidate_has_a_place_and_devices_have_nearly_as_many(n, devices, group):
    candidates = [{"magnitude": np.float32(i), "bounds": np.array([i, i + 1], np.float32)} for i in range(n)]
    arrays, counts, places = deal(candidates, devices, group)
    shape = arrays["magnitude"].shape
    assert shape[0] == devices and shape[2] == group and arrays["bounds"].shape == (*shape, 2)
    assert shape[1] & (shape[1] - 1) == 0  # a power of two: few sizes are compiled
    assert len(set(places)) == n
    np.testing.assert_array_equal(arrays["magnitude"].reshape(-1)[places], range(n))
    device, slot = np.divmod(places, shape[1] * group)
    own = np.bincount(device, minlength=devices)
    assert own.max() - own.min() <= 1
    # Groups that are not counted hold none.
    assert (slot // group < counts[device]).all() and (counts == -(-own // group)).all()


@pytest.mark.parametrize("kind", ["numbers", "doubles", "arrays", "keys", "several keys"])
def test_arrays_are_put_together_as_jax_would(kind):
    keys = jax.random.split(jax.random.key(0), 6)
    xs = {
        "numbers": [np.float32(i) for i in range(3)],
        "doubles": [np.full(2, i, np.float64) for i in range(3)],
        "arrays": [jnp.full(2, i) for i in range(3)],
        "keys": list(keys[:3]),
        "several keys": list(keys.reshape(3, 2)),
    }[kind]
    order = np.array([2, 0, 0, 1])
    expected = jnp.stack(xs)
    for got, want in [
        (stacked(xs), expected),
        (stacked(xs, order, (2, 2)), expected[order].reshape(2, 2, *expected.shape[1:])),
    ]:
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        data = [np.asarray(jax.random.key_data(x) if "keys" in kind else x) for x in (got, want)]
        np.testing.assert_array_equal(*data)
