"""Second moments of what a leaf is multiplied with, for each product that a network is made of.

Each rule takes an equation in which a leaf is one operand, and gives the leaf's axes as groups, rows and inputs, and the
moments of the other operand at sampled positions, summed and scaled up to all positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.sensitivity.views import Pair, View, split_front

__all__ = ["RULES", "WIDEST", "Moments", "Product", "blocks_of", "width_for"]

WIDEST = 4096
_NARROWEST = 128


class Moments(NamedTuple):
    """Sums over positions.

    Attributes:
      second: ``[G, blocks, d, d]`` float32.
      first: ``[G, blocks, d]`` float32.
      positions: ``[]`` float32, over how many positions.
      sampled: ``[]`` float32, how many of them were looked at.
    """

    second: jax.Array
    first: jax.Array
    positions: jax.Array
    sampled: jax.Array


class Product(NamedTuple):
    """How a leaf is used in one product.

    Attributes:
      kind: the primitive.
      groups, rows, inputs: pairs of the leaf's entries. Those of inputs are in the leaf's order, those of groups in the order of
        the moments' first axis.
      take: ``take(key, positions, max_width) -> Moments``, of at most so many positions, inputs cut to blocks.
      total: rows of inputs that each group is multiplied with in one run.
    """

    kind: str
    groups: tuple[Pair, ...]
    rows: tuple[Pair, ...]
    inputs: tuple[Pair, ...]
    take: Callable[[jax.Array, int, int], Moments]
    total: int


def blocks_of(inputs: int, max_width: int) -> tuple[int, int]:
    """Blocks that so many inputs are cut to, and their width: as equal as can be."""
    blocks = -(-inputs // max_width)
    return blocks, -(-inputs // blocks)


def width_for(rows: int) -> int:
    """The most inputs that are looked at together where so many rows of calibration data are behind them.

    The second moment of ``d`` inputs from ``n`` rows has rank ``n``. Beyond that it knows directions along which nothing seems to
    happen, and what error feedback wins by hiding errors there is lost again on new data; damping by about ``d / n`` keeps it from
    that, and with it from using what is known. So blocks are at most as wide as there are rows (measured in
    docs/rate_distortion.md), between 128 and :data:`WIDEST`.

    Example:
      >>> [width_for(n) for n in (1, 320, 10**6)]
      [128, 320, 4096]
    """
    return min(WIDEST, max(_NARROWEST, rows))


def _sample(key: jax.Array, total: int, wanted: int) -> jax.Array:
    """Positions ``[n]``, spread evenly: one drawn in each of ``n`` stretches of equal length."""
    if total <= wanted:
        return jnp.arange(total)
    starts = np.arange(wanted + 1, dtype=np.int64) * total // wanted
    lengths = jnp.asarray(np.diff(starts), jnp.int32)
    return jnp.asarray(starts[:-1], jnp.int32) + jax.random.randint(key, (wanted,), 0, lengths)


def _sums(rows: jax.Array, order: Sequence[Pair], total: int, max_width: int) -> Moments:
    """Moments of ``rows [G, p, *sizes of order]``, with inputs put into the leaf's order and cut to blocks."""
    groups, sampled = rows.shape[:2]
    places = sorted(range(len(order)), key=lambda i: -order[i][1])
    rows = rows.reshape(groups, sampled, *(n for n, _ in order)).transpose(0, 1, *(i + 2 for i in places))
    inputs = math.prod(n for n, _ in order)
    rows = rows.reshape(groups, sampled, inputs).astype(jnp.float32)
    blocks, width = blocks_of(inputs, max_width)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, blocks * width - inputs))).reshape(groups, sampled, blocks, width)
    scale = total / sampled
    second = jnp.einsum("gpbi,gpbj->gbij", rows, rows, preferred_element_type=jnp.float32)
    return Moments(second * scale, rows.sum(1) * scale, jnp.float32(total), jnp.float32(sampled))


def _in_leaf_order(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _pairs(view: View, axes: Sequence[int]) -> tuple[Pair, ...]:
    return tuple(pair for i in axes for pair in view.axes[i])


def _dot_general(equation: Any, view: View, side: int, other: jax.Array) -> Product | str:
    contract, batch = equation.params["dimension_numbers"]
    own_batch, other_batch = list(batch[side]), list(batch[1 - side])
    own_free = [i for i in range(len(view.axes)) if i not in contract[side] and i not in own_batch]
    # Along an axis that the leaf is only repeated over, entries of the other operand are positions like any other.
    repeated = [i for i, axis in enumerate(own_batch) if any(stride == 0 for _, stride in view.axes[axis])]
    if any(stride for i in repeated for _, stride in view.axes[own_batch[i]]):
        return "repeated along an axis that is also its own"
    other_batch = [axis for i, axis in enumerate(other_batch) if i not in repeated]
    own_batch = [axis for i, axis in enumerate(own_batch) if i not in repeated]
    other_free = [i for i in range(other.ndim) if i not in contract[1 - side] and i not in other_batch]
    inputs = _pairs(view, contract[side])
    groups, total = (math.prod(other.shape[i] for i in axes) for axes in (other_batch, other_free))

    def take(key: jax.Array, positions: int, max_width: int) -> Moments:
        order = (*other_batch, *other_free, *contract[1 - side])
        rows = other.transpose(order).reshape(groups, total, -1)
        return _sums(rows[:, _sample(key, total, positions)], inputs, total, max_width)

    return Product("dot_general", _pairs(view, own_batch), _pairs(view, own_free), _in_leaf_order(inputs), take, total)


def _conv(equation: Any, view: View, side: int, x: jax.Array) -> Product | str:
    params = equation.params
    if side != 1:
        return "convolved as the input, not as the kernel"
    if params["batch_group_count"] != 1:
        return "used in a convolution of batch groups"
    dimensions, groups = params["dimension_numbers"], params["feature_group_count"]
    out_axis, in_axis, *window_axes = dimensions.rhs_spec
    parts = split_front(view.axes[out_axis], groups)
    if parts is None:
        return "a grouped convolution whose groups do not follow its axes"
    inputs = (*view.axes[in_axis], *_pairs(view, window_axes))
    x = x.transpose(dimensions.lhs_spec)  # [n, c, *spatial]
    size = [equation.outvars[0].aval.shape[i] for i in (dimensions.out_spec[0], *dimensions.out_spec[2:])]
    total = math.prod(size)

    def take(key: jax.Array, positions: int, max_width: int) -> Moments:
        chosen = _sample(key, total, positions)
        patches = _patches(x, params, [view.shape[i] for i in window_axes], size, chosen)  # [p, taps, c]
        rows = patches.reshape(len(chosen), -1, groups, x.shape[1] // groups).transpose(2, 0, 3, 1)
        return _sums(rows, inputs, total, max_width)

    return Product("conv_general_dilated", parts[0], parts[1], _in_leaf_order(inputs), take, total)


def _patches(x: jax.Array, params: Any, window: Sequence[int], size: Sequence[int], positions: jax.Array) -> jax.Array:
    """What outputs at ``positions [p]`` are made of, ``[p, taps, c]``, from ``x [n, c, *spatial]``."""
    example, *place = jnp.unravel_index(positions, size)
    taps = np.array(list(itertools.product(*map(range, window))), np.int32).reshape(-1, len(window))  # [taps, spatial]
    inside = jnp.ones((len(positions), len(taps)), bool)
    at = []
    for i, spatial in enumerate(x.shape[2:]):
        hole = params["lhs_dilation"][i]
        first = place[i] * params["window_strides"][i] - params["padding"][i][0]
        index = first[:, None] + jnp.asarray(taps[:, i] * params["rhs_dilation"][i])[None]
        inside &= (index >= 0) & (index % hole == 0) & (index // hole < spatial)
        at.append(jnp.clip(index // hole, 0, spatial - 1))
    seen = jnp.moveaxis(x, 1, -1)[(example[:, None], *at)]
    return jnp.where(inside[..., None], seen, 0)


def _gather(equation: Any, view: View, side: int, indices: jax.Array) -> Product | str:
    """An embedding, a product with one-hot rows: each read of a row is one input of 1."""
    params = equation.params
    dimensions, sizes = params["dimension_numbers"], params["slice_sizes"]
    read = tuple(dimensions.start_index_map)
    if side != 0 or len(read) != 1 or read != tuple(dimensions.collapsed_slice_dims) or dimensions.operand_batching_dims:
        return "read by a gather that is no look-up of rows"
    if any(n != (1 if i == read[0] else m) for i, (n, m) in enumerate(zip(sizes, view.shape, strict=True))):
        return "read by a gather that takes parts of rows"
    count = view.shape[read[0]]

    def take(key: jax.Array, positions: int, max_width: int) -> Moments:
        ids = indices.reshape(-1)
        inside = (ids >= 0) & (ids < count)
        if params["mode"] == jax.lax.GatherScatterMode.CLIP:
            inside |= True
        reads = jnp.zeros(count, jnp.float32).at[jnp.clip(ids, 0, count - 1)].add(inside.astype(jnp.float32))
        total = jnp.float32(len(ids))
        return Moments(reads[:, None, None, None], reads[:, None, None], total, total)

    rows = _pairs(view, [i for i in range(len(sizes)) if i != read[0]])
    return Product("gather", view.axes[read[0]], rows, (), take, math.prod(indices.shape))


RULES: dict[str, Callable[[Any, View, int, jax.Array], Product | str]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": _gather,
}
"""By primitive: ``rule(equation, view, side, other)``, where the leaf is operand ``side`` of two; a reason where the
use is none that a curvature is known for."""
