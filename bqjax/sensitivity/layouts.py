"""One layout for all uses of a leaf, and their moments put together in it.

A leaf may be used more than once, in parts, or in two roles. Its axes are cut finely enough for all uses (sizes of which each
divides the next, as digits of a number do); axes that differ from part to part become groups, each with its own moments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bqjax.sensitivity.leaf_curvature import Layout
from bqjax.sensitivity.products import Moments, blocks_of
from bqjax.sensitivity.taps import Use
from bqjax.sensitivity.views import Pair

__all__ = ["Plan", "combined", "planned"]

_MOST_PARTS = 64
_FIRST = {"dot_general": 0, "conv_general_dilated": 0}  # before look-ups of rows


class _Placed(NamedTuple):
    """A use in the common view.

    Attributes:
      place: its name among the uses.
      roles: of each axis of the view: ``"g"``, ``"r"`` or ``"i"``.
      windows: of each axis, from where to where the use reaches.
      groups: axes in the order of the moments' first axis (the stacked ones in front).
    """

    place: str
    roles: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]
    groups: tuple[int, ...]


class Plan(NamedTuple):
    """How the uses of a leaf make its curvature.

    Attributes:
      layout: of the leaf.
      uses: those that the moments are taken from.
      dropped: kinds of those that do not fit them.
    """

    layout: Layout
    uses: tuple[_Placed, ...]
    dropped: tuple[str, ...]


class _Unfit(Exception):
    """Uses that cannot be brought to one layout."""


def planned(shape: Sequence[int], uses: Mapping[str, Use], max_width: int) -> Plan | str:
    """The common layout of a leaf's uses, or why there is none.

    Args:
      shape: of the leaf.
      uses: its products by place.
      max_width: inputs of one block.
    """
    try:
        chain = _chain(shape, uses.values())
        placed = [_place(chain, place, use) for place, use in uses.items()]
    except _Unfit as error:
        return str(error)
    n = len(chain) - 1
    view = tuple(chain[i] // chain[i + 1] for i in range(n))
    taken: list[_Placed] = []
    dropped = []
    groups: set[int] = set()
    for use in sorted(placed, key=lambda use: _FIRST.get(uses[use.place].product.kind, 1)):
        new = groups | {i for i in range(n) if use.roles[i] == "g" or use.windows[i] != (0, view[i])}
        if taken and any(use.roles[i] != taken[0].roles[i] for i in range(n) if i not in new):
            dropped.append(uses[use.place].product.kind)
            continue
        taken.append(use)
        groups = new
    inputs = tuple(i for i in range(n) if i not in groups and taken[0].roles[i] == "i")
    rows = tuple(i for i in range(n) if i not in groups and taken[0].roles[i] == "r")
    blocks, width = blocks_of(math.prod(view[i] for i in inputs), max_width)
    for use in taken:
        cut = [i for i in groups if use.roles[i] == "i"]
        if cut and math.prod(view[i] for i in (*inputs, *cut)) > max_width:
            return f"is used in parts of inputs wider than max_width={max_width}"
    layout = Layout(
        shape=tuple(shape),
        view=view,
        groups=tuple(sorted(groups)),
        rows=rows,
        inputs=inputs,
        width=width if blocks > 1 else None,
    )
    return Plan(layout, tuple(taken), tuple(dropped))


def _pairs(use: Use) -> list[Pair]:
    product = use.product
    return [*(pair for pair, _ in use.view.stack), *product.groups, *product.rows, *product.inputs]


def _chain(shape: Sequence[int], uses: Sequence[Use] | object) -> list[int]:
    """Strides that all uses are made of, descending from the leaf's size to 1, each a multiple of the next."""
    size = math.prod(shape)
    strides = {size, 1, *(math.prod(shape[i + 1 :]) for i in range(len(shape)))}
    found = list(uses)  # type: ignore[call-overload]
    for use in found:
        strides |= {stride for _, stride in _pairs(use)}
    chain = sorted(strides, reverse=True)
    _check(chain)
    # Where a use reaches over part of an axis, all uses' ends on that axis must fall on parts of equal size.
    units: dict[int, int] = {}
    for use in found:
        for n, stride in _cut(chain, _pairs(use)):
            whole = chain[chain.index(stride) - 1] // stride
            if n != whole:
                units[stride] = math.gcd(units.get(stride, whole), n)
    for stride, unit in units.items():
        whole = chain[chain.index(stride) - 1]
        for use in found:
            units[stride] = unit = math.gcd(unit, use.view.offset % whole // stride)
        if whole // stride // unit > _MOST_PARTS:
            raise _Unfit(f"is used in parts that have only {unit} of {whole // stride} entries of an axis in common")
    chain = sorted({*strides, *(stride * unit for stride, unit in units.items())}, reverse=True)
    _check(chain)
    return chain


def _check(chain: Sequence[int]) -> None:
    if any(chain[i] % chain[i + 1] for i in range(len(chain) - 1)):
        raise _Unfit("is used in parts that do not fit each other")


def _cut(chain: Sequence[int], pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs cut where a stride of the chain falls inside them."""
    out = []
    for n, stride in pairs:
        for inside in sorted(c for c in chain if stride < c < n * stride):
            if n * stride % inside:
                raise _Unfit("is used in parts that do not fit each other")
            out.append((inside // stride, stride))
            n, stride = n * stride // inside, inside
        out.append((n, stride))
    return out


def _place(chain: Sequence[int], place: str, use: Use) -> _Placed:
    axes = range(len(chain) - 1)
    roles = [""] * len(axes)
    windows = [(use.view.offset % chain[i] // chain[i + 1],) * 2 for i in axes]
    groups: list[int] = []
    product = use.product
    stack = [pair for pair, _ in use.view.stack]
    for role, pairs in (("g", [*stack, *product.groups]), ("r", product.rows), ("i", product.inputs)):
        for pair in pairs:
            for n, stride in reversed(_cut(chain, [pair])):
                i = chain.index(stride) - 1
                if roles[i]:
                    raise _Unfit("is used with entries repeated")
                roles[i] = role
                windows[i] = (windows[i][0], windows[i][0] + n)
                if role == "g":
                    groups.append(i)
    for i in axes:
        if not roles[i]:  # one entry of an axis
            roles[i] = "r"
            windows[i] = (windows[i][0], windows[i][0] + 1)
    return _Placed(place, tuple(roles), tuple(windows), tuple(groups))


class Combined(NamedTuple):
    """Moments of a leaf: ``second [G, d, d]``, ``mean [G, d]``, and the fewest positions sampled in any group that was reached."""

    second: np.ndarray
    mean: np.ndarray
    rows: int


def combined(plan: Plan, moments: Mapping[str, Moments]) -> Combined:
    """The moments of a leaf from those of its uses, weighted by their positions."""
    layout = plan.layout
    sizes = [layout.view[i] for i in layout.groups]
    count, _, d = layout.rows_shape
    total = np.zeros(sizes, np.float64)
    sampled = np.zeros(sizes, np.float64)
    second = mean = None
    for use in plan.uses:
        own = moments[use.place]
        parts = _in_groups(layout, use, np.asarray(own.second), 2), _in_groups(layout, use, np.asarray(own.first), 1)
        where = tuple(slice(*use.windows[i]) for i in layout.groups)
        covered = total[where].shape
        if len(plan.uses) == 1 and covered == tuple(sizes):  # no copy of what may be large
            second, mean = (np.broadcast_to(part, (*sizes, *part.shape[len(sizes) :])) for part in parts)
        else:
            if second is None or mean is None:
                second, mean = (np.zeros((*sizes, *part.shape[len(sizes) :]), np.float32) for part in parts)
            second[where] += parts[0]
            mean[where] += parts[1]
        total[where] += float(np.max(own.positions))
        sampled[where] += float(np.max(own.sampled))
    scale = (1 / np.maximum(total, 1)).astype(np.float32)
    second = second * scale[..., None, None, None]  # type: ignore[operator]
    mean = mean * scale[..., None, None]  # type: ignore[operator]
    reached = sampled[sampled > 0]
    rows = int(reached.min()) if reached.size else 0
    return Combined(second.reshape(count, d, d), mean.reshape(count, d), rows)


def _in_groups(layout: Layout, use: _Placed, array: np.ndarray, powers: int) -> np.ndarray:
    """A use's moments as ``[*groups, blocks, d]`` or ``[*groups, blocks, d, d]``; an axis that it has none for has size 1."""
    sizes = [stop - start for start, stop in use.windows]
    own = [sizes[i] for i in use.groups]
    inputs = [i for i in range(len(sizes)) if use.roles[i] == "i"]
    kept = [i for i in inputs if i in layout.inputs]
    cut = [i for i in inputs if i not in layout.inputs]
    if cut:  # the blocks on the diagonal, one for each part of the inputs
        n = len(own)
        array = array.reshape(*own, *([sizes[i] for i in inputs] * powers))
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        name = {i: letters[k] for k, i in enumerate([*use.groups, *inputs])}
        other = {i: letters[26 + k] for k, i in enumerate(kept)}
        second = "".join(other.get(i, name[i]) for i in inputs) if powers == 2 else ""
        source = "".join(name[i] for i in (*use.groups, *inputs)) + second
        target = "".join(name[i] for i in (*use.groups, *cut, *kept)) + ("".join(other[i] for i in kept) if powers == 2 else "")
        width = math.prod(sizes[i] for i in kept)
        array = np.einsum(f"{source}->{target}", array).reshape(
            *(array.shape[:n]), *(sizes[i] for i in cut), 1, *([width] * powers)
        )
    else:
        array = array.reshape(*own, *array.shape[-1 - powers :])
    have = [*use.groups, *cut]
    order = [have.index(i) for i in layout.groups if i in have]
    rest = range(len(have), array.ndim)
    array = array.transpose(*order, *rest)
    for k, i in enumerate(layout.groups):
        if i not in have:
            array = np.expand_dims(array, k)
    return array
