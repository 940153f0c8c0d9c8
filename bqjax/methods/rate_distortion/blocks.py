"""Blocks of a leaf along the inputs of its outputs: how the blocks of a file lie in the rows that curvature knows.

A file cuts a leaf into blocks of ``d`` neighbours of one output channel (:mod:`bqjax.core.blocks`); curvature sees the leaf as
``[G, rows, inputs]`` (:class:`bqjax.sensitivity.leaf_curvature.Layout`). Both are orders of the same weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import output_first, to_blocks
from bqjax.sensitivity.leaf_curvature import Layout

__all__ = ["BlockLayout", "block_layout"]


class BlockLayout(NamedTuple):
    """Where blocks lie.

    Attributes:
      inputs: ``[G, B, d]`` int32, the inputs of each block of a row, the same for all rows of a group; padding is the number of
        inputs.
      numbers: ``[G, rows, B]`` int64, each block's number in the leaf's own order of blocks.
      axis_order: of that order.
    """

    inputs: np.ndarray
    numbers: np.ndarray
    axis_order: tuple[int, ...]

    def to_indices(self, chosen: Any, order: Any) -> np.ndarray:
        """Indices ``[n_blocks]`` of the file from ``[G, rows, B]`` whose blocks are in ``order [G, B]``."""
        numbers = np.take_along_axis(self.numbers, np.asarray(order)[:, None, :], axis=2)
        found = np.empty(numbers.size, np.int64)
        found[numbers.reshape(-1)] = np.asarray(chosen).reshape(-1)
        return found

    def from_indices(self, indices: Any, order: Any) -> np.ndarray:
        """The inverse of :meth:`to_indices`."""
        return np.asarray(indices)[np.take_along_axis(self.numbers, np.asarray(order)[:, None, :], axis=2)]


def block_layout(name: str, layout: Layout, d: int) -> BlockLayout:
    """Blocks of ``d`` neighbours of one output channel in a leaf's rows.

    Args:
      name: of the leaf, for messages.
      layout: of its curvature.
      d: weights of a block.

    Raises:
      ValueError: a block has more weights than a row; a block does not lie along the inputs of one output.
    """
    shape = layout.shape
    order = output_first(len(shape))
    row = math.prod(shape[a] for a in order[1:])
    if d < 1 or (d > 1 and d > row):
        raise ValueError(f"leaf {name!r} of shape {shape} has rows of {row} weights: a block must have 1 to {row}, not {d}")
    # Weights by their number, counted from 1: padding is 0 in both orders.
    own = np.arange(1, math.prod(shape) + 1).reshape(shape)
    blocks = np.asarray(to_blocks(jnp.asarray(own), order, d))
    rows = layout.to_rows(own)
    groups, n_rows, n_inputs = rows.shape
    place = np.full(own.size + 1, -1, np.int64)
    place[rows.reshape(-1)] = np.arange(rows.size)
    place[0] = -1
    at = np.where(blocks > 0, place[blocks], -1)  # [n_blocks, d]
    line = np.where(at >= 0, at // n_inputs, at.max(1, keepdims=True) // n_inputs)
    if (line != line[:, :1]).any():
        raise _across(name, d)
    inputs = np.where(at >= 0, at % n_inputs, n_inputs)
    # Blocks by their row, and in each row by their first input.
    sorting = np.lexsort((inputs.min(1), line[:, 0]))
    per_row = len(blocks) // (groups * n_rows)
    if per_row * groups * n_rows != len(blocks) or (np.bincount(line[:, 0], minlength=groups * n_rows) != per_row).any():
        raise _across(name, d)
    inputs = inputs[sorting].reshape(groups, n_rows, per_row, d)
    if (inputs != inputs[:, :1]).any():
        raise _across(name, d)
    return BlockLayout(inputs[:, 0].astype(np.int32), sorting.reshape(groups, n_rows, per_row), order)


def _across(name: str, d: int) -> ValueError:
    return ValueError(
        f"leaf {name!r} cannot be cut to blocks of {d}: a block would not lie along the inputs of one output (parts of wide "
        "inputs, or of a leaf that several layers share); give it blocks that divide its rows, or single weights by leaving it out"
    )
