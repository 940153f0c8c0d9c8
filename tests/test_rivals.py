"""What `benchmarks/rivals.py` computes from files: bytes at equal differences, and layouts."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def rivals():
    spec = importlib.util.spec_from_file_location("rivals", Path(__file__).parents[1] / "benchmarks" / "rivals.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["rivals"] = module  # its classes look themselves up
    spec.loader.exec_module(module)
    return module


def points(rivals, *pairs):
    return [rivals.Point(f"{size}", size, difference) for size, difference in pairs]


def test_bytes_are_interpolated_in_their_logarithm(rivals):
    curve = points(rivals, (4000, -0.001), (1000, -0.02), (2000, -0.01))
    assert rivals.bytes_at(curve, -0.01) == 2000 and rivals.bytes_at(curve, -0.02) == 1000
    assert rivals.bytes_at(curve, -0.015) == pytest.approx(math.sqrt(1000 * 2000))
    expected = np.exp(np.interp(-0.004, [-0.01, -0.001], np.log([2000, 4000])))
    assert rivals.bytes_at(curve, -0.004) == pytest.approx(expected)
    assert rivals.bytes_at(curve, -0.021) is None and rivals.bytes_at(curve, 0.0) is None


def test_a_larger_file_that_happens_to_lose_more_is_pooled(rivals):
    # 2,000 and 3,000 bytes are the same within their errors: both count as -0.01.
    curve = points(rivals, (1000, -0.03), (2000, -0.008), (3000, -0.012), (4000, 0.0))
    assert rivals.bytes_at(curve, -0.01) == 2000
    assert rivals.bytes_at(curve, -0.02) == pytest.approx(math.sqrt(1000 * 2000))


def test_ratios_are_taken_where_both_reach(rivals):
    ours, theirs = points(rivals, (1000, -0.02), (2000, 0.0)), points(rivals, (3000, -0.01), (900, -0.05), (2000, 0.0))
    assert rivals.ratios_at_equal_difference(ours, theirs) == {"3000": pytest.approx(math.sqrt(2e6) / 3000), "2000": 1.0}


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 5, 7), (3, 5, 7)])
def test_layouts_come_back(rivals, shape):
    tensor = np.arange(math.prod(shape)).reshape(shape)
    other = rivals.to_torch_layout(tensor)
    assert other.shape == (shape if len(shape) == 1 else (shape[-1], shape[-2], *shape[:-2]))
    np.testing.assert_array_equal(rivals.from_torch_layout(other), tensor)
