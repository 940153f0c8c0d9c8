"""The rescaling against gemmlowp's definition in Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.tflite.twin.arithmetic import activation_range, quantize_multiplier, rescale_once, rescale_twice, round_away


def doubling_high_mul(a, b):
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)


def divide_by_power(x, exponent):
    mask = (1 << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def oracle(x, m, shift):
    return divide_by_power(doubling_high_mul(x << max(shift, 0), m), max(-shift, 0))


values = st.integers(-(2**31), 2**31 - 1)
multipliers = st.integers(2**30, 2**31 - 1)


@given(st.lists(values, min_size=8, max_size=8), st.lists(multipliers, min_size=8, max_size=8), st.integers(-31, 0))
def test_rescaling_twice_is_gemmlowps(x, m, shift):
    got = rescale_twice(np.array(x, np.int32) + np.zeros(8, np.int32), (np.array(m, np.int32), np.full(8, shift, np.int32)))
    assert got.tolist() == [oracle(a, b, shift) for a, b in zip(x, m, strict=True)]


@given(st.lists(values, min_size=8, max_size=8), multipliers, st.integers(-31, 0))
def test_halves_up_in_the_second_step(x, m, shift):
    got = rescale_twice(np.array(x, np.int32), (np.int32(m), np.int32(shift)), up=True)
    half = 2 ** (-shift - 1) if shift < 0 else 0
    assert got.tolist() == [(doubling_high_mul(a, m) + half) >> -shift for a in x]


@given(
    st.lists(st.integers(-(2**16), 2**16 - 1), min_size=8, max_size=8),
    st.lists(multipliers, min_size=8, max_size=8),
    st.integers(-31, 14),
)
def test_rescaling_once_rounds_the_exact_product(x, m, shift):
    got = rescale_once(np.array(x, np.int32), (np.array(m, np.int32), np.full(8, shift, np.int32)))
    assert got.tolist() == [(a * b + 2 ** (30 - shift)) >> (31 - shift) for a, b in zip(x, m, strict=True)]


@given(st.lists(st.integers(-1000, 1000), min_size=4, max_size=4), multipliers, st.integers(1, 20))
def test_shifts_to_the_left(x, m, shift):
    got = rescale_twice(np.array(x, np.int32), (np.int32(m), np.int32(shift)))
    assert got.tolist() == [oracle(a, m, shift) for a in x]


@given(st.floats(1e-9, 1e6))
def test_a_factor_is_kept_to_31_bits(factor):
    m, shift = quantize_multiplier(factor)
    assert 2**30 <= m < 2**31
    assert float(m) * 2.0 ** (int(shift) - 31) == pytest.approx(factor, rel=2**-31)


def test_factors_out_of_range():
    assert [int(v) for v in quantize_multiplier(1e-12)] == [0, 0]
    for wrong in (-1.0, np.nan, np.inf, 2.0**31):
        with pytest.raises(ValueError, match="rescaling factors"):
            quantize_multiplier(wrong)
    with pytest.raises(ValueError, match="shift of 15"):
        rescale_once(np.ones(1, np.int32), (np.int32(2**30), np.int32(15)))


def test_ranges_of_activations():
    assert activation_range("NONE", 0.1, 5) == (-128, 127)
    assert activation_range("RELU", 0.1, 5) == (5, 127)
    assert activation_range("RELU6", 0.1, 5) == (5, 65)
    assert activation_range("RELU_N1_TO_1", 0.1, 5) == (-5, 15)
    assert [round_away(x) for x in (0.5, -0.5, 1.49, -2.5)] == [1, -1, 1, -3]
    with pytest.raises(ValueError, match="TANH"):
        activation_range("TANH", 0.1, 5)
