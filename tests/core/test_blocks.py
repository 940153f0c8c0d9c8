"""The block layout, against plain loops."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.core.blocks import block_mask, from_blocks, n_blocks, output_first, to_blocks

# Few sizes, so that examples share compilations.
layouts = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=4).flatmap(
    lambda shape: st.tuples(st.just(tuple(shape)), st.permutations(range(len(shape))), st.sampled_from([1, 2, 3, 4, 7]))
)


def loop_blocks(weight, axis_order, d):
    """Rows of d entries, each within one index of the first axis, filled entry by entry."""
    moved_shape = [weight.shape[a] for a in axis_order]
    blocks = []
    for first in range(moved_shape[0] if moved_shape else 1):
        entries = []
        for rest in itertools.product(*map(range, moved_shape[1:])):
            index = [0] * weight.ndim
            for axis, i in zip(axis_order, (first, *rest), strict=False):
                index[axis] = i
            entries.append((float(weight[tuple(index)]), True))
        entries += [(0.0, False)] * (-len(entries) % d)
        blocks += [entries[i : i + d] for i in range(0, len(entries), d)]
    both = np.array(blocks, np.float64).reshape(-1, d, 2)
    return both[..., 0], both[..., 1].astype(bool)


def numbered(shape):
    return np.arange(1, math.prod(shape) + 1, dtype=np.float32).reshape(shape)


@given(layouts)
def test_layout_padding_and_count_agree_with_a_loop(layout):
    shape, order, d = layout
    weight = numbered(shape)
    expected, mask = loop_blocks(weight, order, d)
    np.testing.assert_array_equal(to_blocks(weight, order, d), expected)
    np.testing.assert_array_equal(block_mask(shape, order, d), mask)
    assert n_blocks(shape, order, d) == len(expected)


@given(layouts)
def test_from_blocks_undoes_to_blocks(layout):
    shape, order, d = layout
    weight = numbered(shape)
    back = from_blocks(to_blocks(weight, order, d), shape, order)
    assert back.dtype == weight.dtype
    np.testing.assert_array_equal(back, weight)


def test_a_block_holds_neighbouring_inputs_of_one_output_channel():
    # The hundreds tell the output channel, the tens and units the place within it.
    kernel = np.fromfunction(lambda h, w, i, o: 100 * o + (h * 2 + w) + 4 * i, (2, 2, 3, 5)).astype(np.float32)
    blocks = np.asarray(to_blocks(kernel, output_first(4), 4))
    assert blocks.shape == (15, 4)
    for row, block in enumerate(blocks):
        channel, cin = divmod(row, 3)
        np.testing.assert_array_equal(block, 100 * channel + 4 * cin + np.arange(4))
    matrix = np.fromfunction(lambda i, o: 100 * o + i, (6, 4)).astype(np.float32)
    np.testing.assert_array_equal(to_blocks(matrix, output_first(2), 6), [100 * o + np.arange(6) for o in range(4)])


@pytest.mark.parametrize(("ndim", "order"), [(0, ()), (1, (0,)), (2, (1, 0)), (3, (2, 1, 0)), (4, (3, 2, 0, 1))])
def test_output_first_puts_the_last_axis_first(ndim, order):
    assert output_first(ndim) == order


def test_a_row_is_padded_at_its_own_end():
    blocks = np.asarray(to_blocks(numbered((2, 3)), (0, 1), 2))
    np.testing.assert_array_equal(blocks, [[1, 2], [3, 0], [4, 5], [6, 0]])


def test_padding_is_ignored_on_the_way_back():
    blocks = np.array([[1, 2], [3, 99], [4, 5], [6, 99]], np.float32)
    np.testing.assert_array_equal(from_blocks(blocks, (2, 3), (0, 1)), numbered((2, 3)))


def test_both_directions_trace():
    weight = numbered((3, 2, 5))
    back = jax.jit(lambda w: from_blocks(to_blocks(w, (2, 0, 1), 4), (3, 2, 5), (2, 0, 1)))(weight)
    np.testing.assert_array_equal(back, weight)


@pytest.mark.parametrize("order", [(0,), (0, 0), (1, 2), (0, 1, 2)])
def test_an_order_that_is_no_permutation_is_an_error(order):
    for call in (lambda: to_blocks(numbered((2, 3)), order, 2), lambda: n_blocks((2, 3), order, 2)):
        with pytest.raises(ValueError, match=r"not a permutation of the 2 axes of \(2, 3\)"):
            call()


@pytest.mark.parametrize("d", [0, -1])
def test_a_block_size_below_one_is_an_error(d):
    with pytest.raises(ValueError, match=f"at least 1, got {d}"):
        to_blocks(numbered((2, 3)), (0, 1), d)


def test_a_wrong_number_of_blocks_is_an_error():
    with pytest.raises(ValueError, match=r"\(2, 3\) is 6 blocks of 1, got 7"):
        from_blocks(np.zeros((7, 1), np.float32), (2, 3), (0, 1))
