"""Slices in units of their own: exact decoding, the order of a file, invariants."""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from bqjax.core.leaves import Clustered, Scaled, bits, exponents_of, index_dtype, slice_order

SHAPES = [((3, 4), (3, 1)), ((3, 4), (1, 4)), ((2, 2, 3, 5), (1, 1, 1, 5)), ((4, 2, 3), (1, 2, 3)), ((6,), (6,)), ((3, 1), (3, 1))]


def scaled(shape=(3, 4), own=(3, 1), dtype=np.float32, seed=0, k=9):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, math.prod(shape)).astype(index_dtype(k))
    leaf = Clustered(codes, rng.normal(size=(k, 1)).astype(np.float32), shape, np.float32)
    return Scaled(leaf, exponents_of(rng.integers(-3, 4, own)), np.dtype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "own"), SHAPES)
def test_decodes_as_numpy_scales(shape, own, dtype):
    leaf = scaled(shape, own, dtype)
    leaf.validate()
    exponents = np.asarray(leaf.exponents.codebook)[np.asarray(leaf.exponents.indices), 0].reshape(own)
    values = np.asarray(leaf.leaf.codebook)[np.asarray(leaf.leaf.indices), 0].reshape(shape)
    expected = (values * 2.0 ** exponents.astype(np.float64)).astype(np.float32).astype(dtype)
    assert (leaf.shape, leaf.dtype, leaf.decode().dtype) == (shape, dtype, dtype)
    np.testing.assert_array_equal(leaf.decode(), expected)
    assert bits(leaf) == bits(leaf.leaf) + bits(leaf.exponents)


def test_powers_of_two_are_exact_as_far_as_exponents_go():
    exponents = np.arange(-64, 65)[:, None]
    leaf = Scaled(
        Clustered(np.zeros(129, np.uint8), np.float32([[1.7]]), (129, 1), np.float32), exponents_of(exponents), np.float32
    )
    leaf.validate()
    np.testing.assert_array_equal(jax.jit(lambda x: x.decode())(leaf), np.ldexp(np.float32(1.7), exponents))


@hypothesis.given(st.sampled_from(SHAPES), st.integers(0, 99))
def test_a_file_has_slices_by_rising_exponent(shapes, seed):
    leaf = scaled(*shapes, seed=seed)
    found = slice_order(leaf.shape, leaf.exponents)
    order = found.sort(np.arange(leaf.size))
    np.testing.assert_array_equal(found.unsort(order), np.arange(leaf.size))
    exponents = np.broadcast_to(leaf.exponents.decode(), leaf.shape).reshape(-1)[order]
    assert (np.diff(exponents.astype(int)) >= 0).all()
    assert list(found.breaks) == (np.flatnonzero(np.diff(exponents)) + 1).tolist()
    # Within a slice nothing is moved.
    slices = np.broadcast_to(np.arange(math.prod(shapes[1])).reshape(shapes[1]), leaf.shape).reshape(-1)[order]
    starts = np.flatnonzero(np.diff(slices, prepend=-1))
    assert len(starts) == math.prod(shapes[1])
    assert all((np.diff(part) > 0).all() for part in np.split(order, starts[1:]))


GOOD = scaled()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaf": np.zeros((3, 4))}, "the leaf under powers of two must be a clustered leaf, got a ndarray"),
        ({"exponents": GOOD}, "the exponents under powers of two must be a clustered leaf, got a Scaled"),
        ({"leaf": dataclasses.replace(GOOD.leaf, dtype=np.dtype(np.float16))}, "single float32 weights .* got float16"),
        ({"leaf": dataclasses.replace(GOOD.leaf, group="g")}, "in no group, got float32 .* group 'g'"),
        ({"leaf": dataclasses.replace(GOOD.leaf, axis_order=(1, 0))}, "in C order"),
        ({"exponents": exponents_of(np.zeros((4, 1), int))}, r"exponents of shape \(4, 1\) are not one for each slice of \(3, 4\)"),
        ({"exponents": exponents_of(np.zeros(4, int))}, r"exponents of shape \(4,\) are not one for each slice"),
        (
            {"exponents": Clustered(np.zeros(3, np.uint8), np.int8([[-65]]), (3, 1), np.int8)},
            "exponents must lie between -64 and 64",
        ),
        ({"dtype": np.dtype(np.int8)}, "of floating point, got int8"),
    ],
)
def test_the_invariant_that_fails_is_named(changes, message):
    with pytest.raises(ValueError, match=rf"^dense: .*{message}"):
        dataclasses.replace(GOOD, **changes).validate("dense")


def test_exponents_beyond_are_refused():
    with pytest.raises(ValueError, match="exponents must lie between -64 and 64, got -1 to 300"):
        exponents_of(np.array([[-1], [300]]))
