"""What a value in a traced program is of a leaf: its entries in another order, or some of them.

A leaf reaches the product that it is used in through steps that only move entries: reshapes, transposes, slices. Each is
followed by strides, as NumPy follows its views: an entry of the value is the leaf's entry at ``offset + sum of index * stride``.
An axis that merges several of the leaf's has several (size, stride) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ["Pair", "View", "moved", "split_front", "whole"]

Pair = tuple[int, int]
"""Size and stride, in entries of the flattened leaf."""

Axis = tuple[Pair, ...]


class View(NamedTuple):
    """Entries of a leaf.

    Attributes:
      leaf: its name.
      axes: for each axis of the value its pairs, outermost first; an axis of size 1 has none.
      offset: of the first entry.
      stack: the pairs of axes that loops around the value step through, outermost first, each with the loop's name.
    """

    leaf: str
    axes: tuple[Axis, ...]
    offset: int = 0
    stack: tuple[tuple[Pair, str], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(size for size, _ in axis) for axis in self.axes)

    def step_into(self, loop: str) -> View:
        """The view of one entry along the first axis, which a loop steps through."""
        return self._replace(axes=self.axes[1:], stack=self.stack + tuple((pair, loop) for pair in self.axes[0]))


def whole(leaf: str, shape: Sequence[int]) -> View:
    """A leaf as it is."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return View(leaf, tuple(((n, s),) if n != 1 else () for n, s in zip(shape, strides, strict=True)))


def _joined(pairs: Sequence[Pair]) -> Axis:
    """Pairs with those put together that are one stride."""
    out: list[Pair] = []
    for size, stride in pairs:
        if size == 1:
            continue
        if out and out[-1][1] == size * stride:
            out[-1] = (out[-1][0] * size, stride)
        else:
            out.append((size, stride))
    return tuple(out)


def split_front(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
    """An axis as an outer one of ``size`` and an inner one; None where its pairs do not allow it."""
    front: list[Pair] = []
    rest = list(axis)
    while size > 1:
        if not rest:
            return None
        n, stride = rest.pop(0)
        if size % n == 0:
            front.append((n, stride))
            size //= n
        elif n % size == 0:
            front.append((size, stride * (n // size)))
            rest.insert(0, (n // size, stride))
            size = 1
        else:
            return None
    return tuple(front), tuple(rest)


def _reshape(view: View, equation: Any) -> View | None:
    if equation.params.get("dimensions") is not None:
        return None
    rest = _joined([pair for axis in view.axes for pair in axis])
    axes: list[Axis] = []
    for size in equation.params["new_sizes"]:
        parts = split_front(rest, size)
        if parts is None:
            return None
        axes.append(parts[0])
        rest = parts[1]
    return view._replace(axes=tuple(axes))


def _transpose(view: View, equation: Any) -> View:
    return view._replace(axes=tuple(view.axes[i] for i in equation.params["permutation"]))


def _squeeze(view: View, equation: Any) -> View:
    dropped = [i % len(view.axes) for i in equation.params["dimensions"]]
    return view._replace(axes=tuple(axis for i, axis in enumerate(view.axes) if i not in dropped))


def _expand_dims(view: View, equation: Any) -> View:
    axes = list(view.axes)
    for i in sorted(equation.params["dimensions"]):
        axes.insert(i, ())
    return view._replace(axes=tuple(axes))


def _broadcast(view: View, equation: Any) -> View:
    """New axes have stride 0: the same entry again and again."""
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    axes: list[Axis] = [((size, 0),) if size != 1 else () for size in shape]
    for axis, place in zip(view.axes, places, strict=True):
        if axis:
            axes[place] = axis
    return view._replace(axes=tuple(axes))


def _slice(view: View, equation: Any) -> View | None:
    axes, offset = [], view.offset
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    for axis, size, start, stop, step in zip(view.axes, view.shape, starts, stops, steps, strict=True):
        if (start, stop, step) == (0, size, 1):
            axes.append(axis)
            continue
        inner = math.prod(n for n, _ in axis[1:])
        if step != 1 or not axis or start % inner or stop % inner:
            return None
        offset += (start // inner) * axis[0][1]
        axes.append(_joined([((stop - start) // inner, axis[0][1]), *axis[1:]]))
    return view._replace(axes=tuple(axes), offset=offset)


def _same(view: View, equation: Any) -> View | None:
    return view if tuple(equation.outvars[0].aval.shape) == view.shape else None


_STEPS: dict[str, Callable[[View, Any], View | None]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
    "reduce_precision": _same,
    "optimization_barrier": _same,
    "sharding_constraint": _same,
}


def moved(view: View, equation: Any) -> View | None:
    """The view of an equation's result where all that it does is move a view's entries, or None."""
    step = _STEPS.get(equation.primitive.name)
    if step is None or len(equation.outvars) != 1:
        return None
    return step(view, equation)
