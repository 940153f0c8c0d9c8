"""Layouts against axes moved by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.sensitivity.leaf_curvature import Layout

LEAF = np.arange(240.0).reshape(2, 4, 6, 5)


def layout(**change):
    settings = {"shape": (2, 4, 6, 5), "view": (2, 4, 3, 2, 5), "groups": (2, 0), "rows": (4,), "inputs": (1, 3), **change}
    return Layout(**settings)


def test_rows_are_the_leaf_with_its_axes_moved():
    expected = LEAF.reshape(2, 4, 3, 2, 5).transpose(2, 0, 4, 1, 3).reshape(6, 5, 8)
    np.testing.assert_array_equal(layout().to_rows(LEAF), expected)
    np.testing.assert_array_equal(layout().to_leaf(expected), LEAF)


@pytest.mark.parametrize(("width", "blocks"), [(8, 1), (4, 2), (3, 3)])
def test_wide_inputs_are_cut_to_blocks_and_come_back(width, blocks):
    cut = layout(width=width)
    rows = cut.to_rows(LEAF)
    assert rows.shape == cut.rows_shape == (6 * blocks, 5, width)
    whole = layout().to_rows(LEAF)
    np.testing.assert_array_equal(rows[1][:, : min(width, 8)], whole[0][:, width : 2 * width] if blocks > 1 else whole[1])
    np.testing.assert_array_equal(cut.to_leaf(rows), LEAF)
    real = cut.real_inputs()
    assert real.shape == (6 * blocks, width) and real.sum() == 6 * 8
    assert not rows.swapaxes(1, 2)[~real].any()


def test_it_is_static_under_jit():
    rows = jax.jit(lambda way, x: way.to_rows(x))(layout(width=3), jnp.asarray(LEAF))
    np.testing.assert_array_equal(rows, layout(width=3).to_rows(LEAF))
    assert hash(layout()) == hash(layout()) and layout() != layout(width=3)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"view": (2, 4)}, "cannot be seen as"), ({"rows": ()}, "each once"), ({"width": 0}, "width must be at least 1")],
)
def test_bad_layouts_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        layout(**change)


def test_arrays_of_other_shapes_are_named():
    with pytest.raises(ValueError, match=r"the leaf has shape \(2, 4, 6, 5\)"):
        layout().to_rows(LEAF[0])
    with pytest.raises(ValueError, match=r"rows have shape \(6, 5, 8\)"):
        layout().to_leaf(LEAF)
