"""How candidates are dealt over devices and groups."""

from __future__ import annotations

import numpy as np
import pytest

from bqjax.sensitivity.candidates import deal


@pytest.mark.parametrize(("n", "devices", "group"), [(1, 4, 1), (7, 2, 3), (70, 2, 1)])
def test_each_candidate_has_a_place_and_devices_have_nearly_as_many(n, devices, group):
    candidates = [{"magnitude": np.float32(i), "bounds": np.array([i, i + 1], np.float32)} for i in range(n)]
    stacked, counts, places = deal(candidates, devices, group)
    shape = stacked["magnitude"].shape
    assert shape[0] == devices and shape[2] == group and stacked["bounds"].shape == (*shape, 2)
    assert shape[1] & (shape[1] - 1) == 0  # a power of two: few sizes are compiled
    assert len(set(places)) == n
    np.testing.assert_array_equal(stacked["magnitude"].reshape(-1)[places], range(n))
    device, slot = np.divmod(places, shape[1] * group)
    own = np.bincount(device, minlength=devices)
    assert own.max() - own.min() <= 1
    # Groups that are not counted hold none.
    assert (slot // group < counts[device]).all() and (counts == -(-own // group)).all()
