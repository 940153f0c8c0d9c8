"""Weights as rows of blocks: the layout that scalar and product quantization share.

A weight of any rank becomes a matrix ``[n_blocks, d]`` whose rows are the samples of a clustering
(Sakthi et al. 2022, III-D: ``W in R^{d x n_blocks}``; Stock et al. 2019). The axes are first put into
``axis_order``; its first axis counts the rows, the others are flattened behind it, so that with the order
of :func:`output_first` a block holds ``d`` neighbouring inputs of *one* output channel. Where ``d`` does not
divide a row, the row's last block is padded with zeros and :func:`block_mask` says which entries are real.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["block_mask", "float_blocks", "from_blocks", "leaf_blocks", "n_blocks", "output_first", "to_blocks"]


def output_first(ndim: int) -> tuple[int, ...]:
    """Axis order that puts the output channel, the last axis of a JAX kernel, first and the input channel next.

    >>> output_first(4)  # [kh, kw, cin, cout] -> [cout, cin, kh, kw]
    (3, 2, 0, 1)
    >>> output_first(2)
    (1, 0)
    """
    if ndim < 2:
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def _rows_and_columns(shape: Sequence[int], axis_order: Sequence[int], d: int) -> tuple[int, int]:
    if sorted(axis_order) != list(range(len(shape))):
        raise ValueError(f"axis_order {tuple(axis_order)} is not a permutation of the {len(shape)} axes of {tuple(shape)}")
    if d < 1:
        raise ValueError(f"block size d must be at least 1, got {d}")
    if d == 1:  # every entry is its own block: no row structure, no padding
        return 1, math.prod(shape)
    moved = [shape[a] for a in axis_order]
    return (moved[0], math.prod(moved[1:])) if moved else (1, 1)


def n_blocks(shape: Sequence[int], axis_order: Sequence[int], d: int) -> int:
    """Number of blocks of size ``d`` that a weight of this shape becomes.

    >>> n_blocks((3, 3, 16, 32), (3, 2, 0, 1), 6)
    768
    """
    rows, columns = _rows_and_columns(shape, axis_order, d)
    return rows * -(-columns // d)


def to_blocks(weight: jax.Array, axis_order: Sequence[int], d: int) -> jax.Array:
    """Lays a weight out as blocks.

    Args:
      weight: array of any shape.
      axis_order: permutation of its axes, the row axis first.
      d: entries per block.

    Returns:
      ``[n_blocks, d]`` array; rows are padded with zeros where ``d`` does not divide them.
    """
    weight = jnp.asarray(weight)
    rows, columns = _rows_and_columns(weight.shape, axis_order, d)
    matrix = jnp.transpose(weight, axis_order).reshape(rows, columns)
    matrix = jnp.pad(matrix, ((0, 0), (0, -columns % d)))
    return matrix.reshape(-1, d)


def from_blocks(blocks: jax.Array, shape: Sequence[int], axis_order: Sequence[int]) -> jax.Array:
    """Inverse of :func:`to_blocks`: drops the padding and restores shape and axis order.

    Args:
      blocks: ``[n_blocks, d]``.
      shape: shape of the weight.
      axis_order: the order given to :func:`to_blocks`.

    Raises:
      ValueError: the number of blocks is not that of a weight of this shape.
    """
    d = blocks.shape[1]
    rows, columns = _rows_and_columns(shape, axis_order, d)
    if blocks.shape[0] != n_blocks(shape, axis_order, d):
        raise ValueError(f"{tuple(shape)} is {n_blocks(shape, axis_order, d)} blocks of {d}, got {blocks.shape[0]}")
    matrix = blocks.reshape(rows, -(-columns // d) * d)[:, :columns]
    moved = matrix.reshape([shape[a] for a in axis_order])
    return jnp.transpose(moved, np.argsort(np.asarray(axis_order, dtype=np.int64)).tolist())


def block_mask(shape: Sequence[int], axis_order: Sequence[int], d: int) -> np.ndarray:
    """``[n_blocks, d]`` booleans: True for entries of the weight, False for padding."""
    rows, columns = _rows_and_columns(shape, axis_order, d)
    mask = np.ones((rows, columns), bool)
    return np.pad(mask, ((0, 0), (0, -columns % d))).reshape(-1, d)


@functools.partial(jax.jit, static_argnums=(1, 2))
def float_blocks(weight: jax.Array, axis_order: tuple[int, ...], d: int) -> jax.Array:
    """:func:`bqjax.core.blocks.to_blocks` in float32."""
    return to_blocks(weight.astype(jnp.float32), axis_order, d)


def leaf_blocks(name: str, leaf: Any, d: int) -> tuple[jax.Array, np.ndarray]:
    """Blocks ``[n, d]`` of a leaf in float32, and which of their entries are real."""
    order = output_first(np.ndim(leaf))
    row = math.prod(np.shape(leaf)[a] for a in order[1:])
    if d > 1 and d > row:
        raise ValueError(
            f"leaf {name!r} of shape {np.shape(leaf)} has rows of {row} weights, fewer than a block of {d}: give it a smaller "
            f"block by a rule, Rule({name!r}, GWKConfig(cv={row}, pw={row})), or skip it, Rule({name!r}, skip=True)"
        )
    return float_blocks(jnp.asarray(leaf), order, d), block_mask(np.shape(leaf), order, d)
