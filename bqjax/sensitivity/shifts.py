"""Finds the bias or shift that can take up a change of the mean of a product's outputs.

A leaf is changed by ``e``, and the mean of its outputs by ``e^T E[x]``. Where nothing happens to the outputs before a bias is added
but additions of and multiplications by what does not depend on the data (BatchNorm in evaluation), the bias can make that
good. It is found in what the function does, not by a name. LayerNorm doesn't count: its statistics see the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from bqjax.sensitivity.leaf_curvature import Layout
from bqjax.sensitivity.products import RULES
from bqjax.sensitivity.slicing import bind, called
from bqjax.sensitivity.views import View, moved

__all__ = ["Found", "Shift", "find_shifts", "placed"]


class Shift(NamedTuple):
    """Where the mean of a leaf's outputs can be corrected.

    A change of row ``r`` of group ``g`` that moves the mean of its output by ``m`` is made good by adding
    ``-gain[g, r] * m`` to entry ``entries[g, r]`` of the flattened leaf ``bias``. Several rows may share an entry (blocks of one
    row's inputs): add them all.

    Attributes:
      bias: name of the leaf.
      entries: ``[G, rows]`` int64.
      gain: ``[G, rows]`` float32.
    """

    bias: str
    entries: np.ndarray
    gain: np.ndarray


class Found(NamedTuple):
    """A shift in the entries of the leaf: ``bias[entries]`` shifts the outputs of ``leaf[own]``, at ``gain``; each ``[n]``."""

    bias: str
    own: np.ndarray
    entries: np.ndarray
    gain: np.ndarray


class _Output(NamedTuple):
    """A value that is a product's outputs times ``gain``, plus what does not depend on the data."""

    view: View  # of the leaf: entries of one input; repeated along axes of positions
    gain: np.ndarray  # broadcasts to the value


def find_shifts(closed: Any, arguments: Sequence[Any], views: Sequence[View | None]) -> dict[str, Found]:
    """For each leaf all of whose products have a bias behind them, that bias.

    Args:
      closed: a function's closed jaxpr.
      arguments: its flattened arguments, those that depend on the data as None.
      views: for each of them the leaf that it is, or None.
    """
    search = _Search()
    fixed = [_Fixed.of(a) if a is not None else None for a in arguments]
    search.walk(closed, fixed, views, [None] * len(views), [False] * len(closed.jaxpr.outvars))
    joined = {leaf: _joined(found) for leaf, found in search.found.items() if len(found) == search.products[leaf]}
    return {leaf: found for leaf, found in joined.items() if found is not None}


def placed(found: Found, layout: Layout) -> Shift | None:
    """A shift by the groups and rows of a layout; None where some rows have none."""
    shape = layout.rows_shape[:2]
    groups = shape[0] // layout.blocks

    def by_row(values: np.ndarray, start: float) -> np.ndarray:
        leaf = np.full(int(np.prod(layout.shape)), start)
        leaf[found.own] = values
        rows = layout.to_rows((leaf - start).reshape(layout.shape)).sum(-1) + start  # one input of each row is set
        return np.repeat(rows.reshape(groups, layout.blocks, -1).sum(1) - start * (layout.blocks - 1), layout.blocks, axis=0)

    entries = by_row(found.entries.astype(np.float64), -1.0).astype(np.int64)
    return None if (entries < 0).any() else Shift(found.bias, entries, by_row(found.gain, 0.0).astype(np.float32))


def _joined(found: Sequence[Found]) -> Found | None:
    """One shift of all products of a leaf: the same one behind each, or parts of one bias behind its parts."""
    first = found[0]
    if any(other.bias != first.bias for other in found):
        return None
    if all(np.array_equal(a, b) for other in found for a, b in zip(first[1:], other[1:], strict=True)):
        return first
    own, entries, gain = (np.concatenate(parts) for parts in zip(*(other[1:] for other in found), strict=True))
    return Found(first.bias, own, entries, gain) if np.unique(own).size == own.size else None


class _Fixed:
    """A value that does not depend on the data, computed only where it is asked for."""

    def __init__(self, compute: Any):
        self._compute = compute

    @classmethod
    def of(cls, value: Any) -> _Fixed:
        return cls(lambda: value)

    @functools.cached_property
    def value(self) -> Any:
        return self._compute()


class _Search:
    def __init__(self) -> None:
        self.products: dict[str, int] = {}
        self.found: dict[str, list[Found]] = {}

    def walk(
        self,
        closed: Any,
        fixed: Sequence[_Fixed | None],
        views: Sequence[View | None],
        chains: Sequence[_Output | None],
        once: Sequence[bool],
    ) -> tuple[list[_Fixed | None], list[View | None], list[_Output | None]]:
        """What the results are, from what the arguments are; ``once`` says which results are read just once."""
        jaxpr = closed.jaxpr
        known: dict[Any, _Fixed] = {v: _Fixed.of(c) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}
        known.update({v: f for v, f in zip(jaxpr.invars, fixed, strict=True) if f is not None})
        seen = {v: view for v, view in zip(jaxpr.invars, views, strict=True) if view is not None}
        outputs = {v: chain for v, chain in zip(jaxpr.invars, chains, strict=True) if chain is not None}
        reads: dict[Any, int] = {}
        for atom in [atom for equation in jaxpr.eqns for atom in equation.invars]:
            if not isinstance(atom, core.Literal):
                reads[atom] = reads.get(atom, 0) + 1
        for atom, single in zip(jaxpr.outvars, once, strict=True):
            if not isinstance(atom, core.Literal):
                reads[atom] = reads.get(atom, 0) + (1 if single else 2)

        def of(table: Mapping[Any, Any], atom: Any) -> Any:
            if isinstance(atom, core.Literal):
                return _Fixed.of(atom.val) if table is known else None
            return table.get(atom)

        for equation in jaxpr.eqns:
            own_fixed = [of(known, atom) for atom in equation.invars]
            own_views = [of(seen, atom) for atom in equation.invars]
            own_chains = [of(outputs, atom) if reads.get(atom) == 1 else None for atom in _hashable(equation.invars)]
            inner = called(equation)
            if inner is not None:
                read_once = [reads.get(v) == 1 for v in equation.outvars]
                results: Any = self.walk(inner, own_fixed, own_views, own_chains, read_once)
            elif equation.primitive.name == "scan":
                results = self._scan(equation, own_fixed, own_views)
            else:
                results = self._step(equation, own_fixed, own_views, own_chains)
            tables: list[dict[Any, Any]] = [known, seen, outputs]
            for table, values in zip(tables, results, strict=True):
                table.update({v: value for v, value in zip(equation.outvars, values, strict=True) if value is not None})
        return tuple([of(table, atom) for atom in jaxpr.outvars] for table in (known, seen, outputs))  # type: ignore[return-value]

    def _scan(self, equation: Any, fixed: Sequence[Any], views: Sequence[View | None]) -> Any:
        params = equation.params
        n, m = params["num_consts"], params["num_consts"] + params["num_carry"]
        name = str(id(equation))
        inner = [*views[:n], *([None] * (m - n)), *(view and view.step_into(name) for view in views[m:])]
        nothing = [None] * len(equation.outvars)
        known = [*fixed[:n], *([None] * (len(fixed) - n))]
        self.walk(params["jaxpr"], known, inner, [None] * len(inner), [False] * len(nothing))
        return nothing, nothing, nothing

    def _step(
        self, equation: Any, fixed: list[_Fixed | None], views: list[View | None], outputs: list[_Output | None]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        count = len(equation.outvars)
        nothing = [None] * count
        name = equation.primitive.name
        if name in ("while", "cond"):
            for leaf in [view.leaf for view in views if view is not None]:
                self.products[leaf] = self.products.get(leaf, 0) + 1  # and no shift is looked for
            return nothing, nothing, nothing
        if all(f is not None for f in fixed):
            lazy = _Fixed(lambda: bind(equation, [f.value for f in fixed if f is not None]))
            results: list[Any] = [_Fixed(lambda i=i: lazy.value[i]) for i in range(count)]
            view = moved(views[0], equation) if len(fixed) == 1 and views[0] is not None else None
            return results, [view, *nothing[1:]], nothing
        if len(views) == 1 and views[0] is not None:
            return nothing, [moved(views[0], equation), *nothing[1:]], nothing
        if name in RULES and len(views) == 2 and (views[0] is None) != (views[1] is None):
            return nothing, nothing, [self._product(equation, views)]
        if len(outputs) == 1 and outputs[0] is not None:
            return nothing, nothing, [self._moved(outputs[0], equation), *nothing[1:]]
        if name in ("add", "sub", "mul", "div") and (outputs[0] is None) != (outputs[1] is None):
            return nothing, nothing, [self._affine(name, equation, fixed, views, outputs)]
        return nothing, nothing, nothing

    def _product(self, equation: Any, views: list[View | None]) -> _Output | None:
        """The outputs of a product by the entries of the leaf that made them (those of the first input)."""
        side = 0 if views[1] is None else 1
        view = views[side]
        if view is None:
            return None
        self.products[view.leaf] = self.products.get(view.leaf, 0) + 1
        other = jax.ShapeDtypeStruct(equation.invars[1 - side].aval.shape, equation.invars[1 - side].aval.dtype)
        shape = equation.outvars[0].aval.shape
        axes: list[Any] = [((n, 0),) if n != 1 else () for n in shape]
        if equation.primitive.name == "dot_general":
            contract, batch = equation.params["dimension_numbers"]
            free = [i for i in range(len(view.axes)) if i not in contract[side] and i not in batch[side]]
            first = len(batch[side]) + (len(other.shape) - len(contract[1]) - len(batch[1]) if side else 0)
            places = [*enumerate(batch[side]), *((first + k, i) for k, i in enumerate(free))]
        elif equation.primitive.name == "conv_general_dilated" and side == 1:
            dimensions = equation.params["dimension_numbers"]
            places = [(dimensions.out_spec[1], dimensions.rhs_spec[0])]
        else:
            return None
        for place, own in places:
            axes[place] = view.axes[own]
        return _Output(view._replace(axes=tuple(axes)), np.ones((1,) * len(shape)))

    def _moved(self, output: _Output, equation: Any) -> _Output | None:
        """Outputs whose axes are moved, before anything has multiplied them by channel."""
        view = moved(output.view, equation)
        if view is None:
            return None
        if output.gain.size == 1:
            return _Output(view, output.gain.reshape((1,) * len(view.axes)))
        return _Output(view, output.gain) if equation.primitive.name == "convert_element_type" else None

    def _affine(
        self, name: str, equation: Any, fixed: list[_Fixed | None], views: list[View | None], outputs: list[_Output | None]
    ) -> _Output | None:
        side = 0 if outputs[0] is not None else 1
        output, by, bias = outputs[side], fixed[1 - side], views[1 - side]
        if output is None or equation.outvars[0].aval.shape != equation.invars[side].aval.shape:
            return None
        sign = -1.0 if name == "sub" and side == 1 else 1.0
        if name in ("add", "sub") and bias is not None:
            # What is added is `bias` itself, or its negative.
            own = -1.0 if name == "sub" and side == 0 else 1.0
            self._record(output._replace(gain=output.gain * sign * own), bias)
            return None
        if by is None or (name == "div" and side == 1):
            return None
        if name in ("add", "sub"):
            return output._replace(gain=output.gain * sign)
        factor = np.asarray(by.value, np.float64)
        if factor.ndim:
            where = tuple(slice(None) if _strided(axis) else slice(0, 1) for axis in output.view.axes)
            if not (factor == factor[where]).all():
                return None
            factor = factor[where]
        return output._replace(gain=output.gain * factor if name == "mul" else output.gain / factor)

    def _record(self, output: _Output, bias: View) -> None:
        view = output.view
        if len(bias.axes) != len(view.axes) or [loop for _, loop in bias.stack] != [loop for _, loop in view.stack]:
            return
        if any(_strided(b) and not _strided(a) for a, b in zip(view.axes, bias.axes, strict=True)):
            return  # it differs between positions
        channels = [i for i, axis in enumerate(view.axes) if _strided(axis)]
        if any(not _strided(bias.axes[i]) or bias.shape[i] != view.shape[i] for i in channels):
            return  # outputs share an entry
        own, entries = (_entries([(pair,) for pair, _ in v.stack] + [v.axes[i] for i in channels]) + v.offset for v in (view, bias))
        gain = np.broadcast_to(output.gain, [n if _strided(a) else 1 for n, a in zip(view.shape, view.axes, strict=True)])
        stacked = own.size // max(1, gain.size)
        found = Found(bias.leaf, own, entries, np.tile(gain.reshape(-1), stacked))
        self.found.setdefault(view.leaf, []).append(found)


def _hashable(atoms: Sequence[Any]) -> list[Any]:
    return [None if isinstance(atom, core.Literal) else atom for atom in atoms]


def _strided(axis: Sequence[tuple[int, int]]) -> bool:
    return any(stride for _, stride in axis)


def _entries(axes: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Numbers of the entries that axes run over, flattened."""
    out = np.zeros(1, np.int64)
    for n, stride in (pair for axis in axes for pair in axis):
        out = (out[:, None] + np.arange(n, dtype=np.int64)[None] * stride).reshape(-1)
    return out
