"""Named measurements kept in a file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from bqjax.core.kept import kept_or_measured


class Measured(NamedTuple):
    second: np.ndarray
    rows: int
    mean: np.ndarray


def measured(seed=0):
    rng = np.random.default_rng(seed)
    return {name: Measured(rng.normal(size=(1, 3, 3)).astype(np.float32), 7, np.ones((), np.int64)) for name in ("a/b", "c")}


def test_the_second_time_the_file_answers(tmp_path):
    path, calls = tmp_path / "m.safetensors", []

    def measure():
        calls.append(0)
        return measured()

    first = kept_or_measured(path, {"key": "1"}, Measured, measure)
    again = kept_or_measured(path, {"key": "1"}, Measured, measure)
    assert len(calls) == 1 and list(again) == list(first)
    for name in first:
        assert type(again[name]) is Measured and again[name].rows == 7
        for x, y in zip(first[name], again[name], strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.shape(x) == np.shape(y) and np.asarray(x).dtype == np.asarray(y).dtype


def test_nothing_is_kept_without_a_path(tmp_path):
    assert kept_or_measured(None, {}, Measured, measured).keys() == {"a/b", "c"} and not list(tmp_path.iterdir())


def test_another_runs_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    kept_or_measured(path, {"key": "1", "params": "x"}, Measured, measured)
    with pytest.raises(ValueError, match=r"another run \(params changed\)"):
        kept_or_measured(path, {"key": "1", "params": "y"}, Measured, measured)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"not measurements")
    with pytest.raises(ValueError, match="does not hold measurements"):
        kept_or_measured(path, {}, Measured, measured)


def test_a_file_of_another_kind_is_refused(tmp_path):
    class Other(NamedTuple):
        third: np.ndarray

    path = tmp_path / "m.safetensors"
    kept_or_measured(path, {}, Measured, measured)
    with pytest.raises(ValueError, match="does not hold measurements of this kind"):
        kept_or_measured(path, {}, Other, measured)
