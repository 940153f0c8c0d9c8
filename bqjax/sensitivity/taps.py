"""Runs a traced function and takes moments on the way, wherever a leaf is multiplied with something.

The jaxpr is evaluated equation by equation, the documented pattern for custom interpreters
(https://docs.jax.dev/en/latest/notebooks/Writing_custom_interpreters_in_Jax.html). Beside each value goes what it is of a leaf
(:mod:`bqjax.sensitivity.views`), as far as it is nothing else. Calls (``jit``, ``remat``, ``custom_vjp``) are looked into; loops
and branches are built again with the moments among their results: a leaf that a loop closes over has the sum over its steps,
a leaf that ``scan`` steps through has moments for each slice.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from bqjax.sensitivity.products import RULES, WIDEST, Moments, Product, width_for
from bqjax.sensitivity.slicing import bind, called
from bqjax.sensitivity.views import View, moved

__all__ = ["Taps", "Use"]

_UNKNOWN_STEPS = 16  # of a `while`, for the number of positions in each


class Use(NamedTuple):
    """One product of a leaf."""

    view: View
    product: Product


class _Context(NamedTuple):
    key: jax.Array
    path: str
    steps: int = 1  # of the loops around

    def inner(self, name: str, step: Any = None, steps: int = 1) -> _Context:
        key = self.key if step is None else jax.random.fold_in(self.key, step)
        return _Context(key, f"{self.path}/{name}", self.steps * steps)


Found = dict[str, Moments]


class Taps:
    """An interpreter that takes moments.

    Args:
      positions: of which at most so many are looked at in one product and run; loops share them among their steps.
      max_width: inputs of one block; None follows the rows of calibration data behind each leaf.
      batches: that moments are taken on, for their number of rows.

    Attributes:
      uses: the products found, by their place in the program; filled while a run is traced.
      others: by leaf, the reasons for which it has no curvature, in words that follow the leaf's name.
    """

    def __init__(self, positions: int, max_width: int | None, batches: int = 1):
        self._positions, self._max_width, self._batches = positions, max_width, batches
        self._sizes: dict[str, int] = {}
        self._widths: dict[str, int] = {}
        self.uses: dict[str, Use] = {}
        self.others: dict[str, dict[str, None]] = {}

    def run(self, closed: Any, arguments: Sequence[Any], views: Sequence[View | None], key: jax.Array) -> tuple[list[Any], Found]:
        """The function's results, and the moments of each product by its place. Traceable.

        Args:
          closed: the function's closed jaxpr.
          arguments: its flattened arguments.
          views: for each of them the leaf that it is, or None.
          key: a ``jax.random`` key, of the positions.
        """
        self._sizes = {view.leaf: math.prod(view.shape) for view in views if view is not None}
        results, found, left = self._evaluate(closed, arguments, views, [True] * len(closed.jaxpr.outvars), _Context(key, ""))
        self._refuse(left, "is a result by itself")
        return results, found

    def width(self, leaf: str) -> int:
        """Inputs of one block of a leaf, whose uses were traced."""
        return self._widths.get(leaf, self._max_width or WIDEST)

    def _width_of(self, view: View, product: Product, rows: int) -> int:
        """Fixed at a leaf's first use, so that all are cut alike. Parts of inputs are not cut again."""
        if self._max_width is not None:
            return self._max_width
        pairs = [*(pair for pair, _ in view.stack), *product.groups, *product.rows, *product.inputs]
        whole = math.prod(size for size, _ in pairs) == self._sizes[view.leaf]
        return self._widths.setdefault(view.leaf, width_for(rows) if whole else WIDEST)

    def _refuse(self, views: Sequence[View | None], reason: str) -> None:
        for view in views:
            if view is not None:
                self.others.setdefault(view.leaf, {})[reason] = None

    def _evaluate(
        self, closed: Any, arguments: Sequence[Any], views: Sequence[View | None], wanted: Sequence[bool], context: _Context
    ) -> tuple[list[Any], Found, list[View | None]]:
        jaxpr = closed.jaxpr
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        seen: dict[Any, View] = {v: view for v, view in zip(jaxpr.invars, views, strict=True) if view is not None}
        found: Found = {}
        for number, (equation, live) in enumerate(_live(jaxpr, wanted)):
            values = [atom.val if isinstance(atom, core.Literal) else env[atom] for atom in equation.invars]
            own = [None if isinstance(atom, core.Literal) else seen.get(atom) for atom in equation.invars]
            name = equation.primitive.name
            inner = context._replace(path=f"{context.path}/{number}{name}")
            results, new, left = self._step(equation, values, own, live, inner)
            env.update(zip(equation.outvars, results, strict=True))
            seen.update({v: view for v, view in zip(equation.outvars, left, strict=True) if view is not None})
            found.update(new)
        # Results that no one wants may never have been computed.
        outputs = [
            atom.val if isinstance(atom, core.Literal) else env.get(atom) if not want else env[atom]
            for atom, want in zip(jaxpr.outvars, wanted, strict=True)
        ]
        left = [
            None if isinstance(atom, core.Literal) or not want else seen.get(atom)
            for atom, want in zip(jaxpr.outvars, wanted, strict=True)
        ]
        return outputs, found, left

    def _step(
        self, equation: Any, values: list[Any], views: list[View | None], live: Sequence[bool], context: _Context
    ) -> tuple[list[Any], Found, list[View | None]]:
        """Results of one equation, the moments in it, and what each result is of a leaf."""
        nothing: list[View | None] = [None] * len(equation.outvars)
        if not any(views):
            return bind(equation, values), {}, nothing
        inner = called(equation)
        if inner is not None:
            return self._evaluate(inner, values, views, live, context)
        loop = {"scan": self._scan, "while": self._while, "cond": self._cond}.get(equation.primitive.name)
        if loop is not None:
            results, found = loop(equation, values, views, context)
            return results, found, nothing
        results = bind(equation, values)
        if len(values) == 1 and views[0] is not None:
            view = moved(views[0], equation)
            if view is not None:
                return results, {}, [view]
        return results, self._product(equation, values, views, context), nothing

    def _product(self, equation: Any, values: list[Any], views: list[View | None], context: _Context) -> Found:
        name = equation.primitive.name
        rule = RULES.get(name)
        tracked = [(side, view) for side, view in enumerate(views) if view is not None]
        if rule is None or len(values) != 2:
            self._refuse(views, f"goes through {name!r}, which is no product that a curvature is known for")
            return {}
        if len(tracked) == 2:
            self._refuse(views, "is multiplied with a leaf")
            return {}
        side, view = tracked[0]
        product = rule(equation, view, side, values[1 - side])
        if isinstance(product, Product) and any(stride == 0 for _, stride in (*product.rows, *product.inputs)):
            product = "repeated before it is multiplied"
        if isinstance(product, str):
            self._refuse([view], f"is {product}")
            return {}
        self.uses[context.path] = Use(view, product)
        stacked = math.prod(pair[0] for pair, _ in view.stack)
        key = jax.random.fold_in(context.key, zlib.crc32(context.path.encode()) & 0x7FFFFFFF)
        positions = max(1, self._positions * stacked // context.steps)
        rows = self._batches * min(product.total, positions) * context.steps // stacked
        return {context.path: product.take(key, positions, self._width_of(view, product, rows))}

    def _scan(self, equation: Any, values: list[Any], views: list[View | None], context: _Context) -> tuple[list[Any], Found]:
        params = equation.params
        closed, length = params["jaxpr"], params["length"]
        n, m = params["num_consts"], params["num_consts"] + params["num_carry"]
        self._refuse(views[n:m], "is carried through a scan")
        repeated = [view is not None and any(stride == 0 for _, stride in view.axes[0]) for view in views[m:]]
        self._refuse([view for view, again in zip(views[m:], repeated, strict=True) if again], "is repeated for a scan")
        views = [*views[:m], *(None if again else view for view, again in zip(views[m:], repeated, strict=True))]
        own = [*views[:n], *([None] * (m - n)), *(view and view.step_into(context.path) for view in views[m:])]

        def body(state: Any, step: Any) -> Any:
            carry, i = state
            inner = context.inner("body", i, length)
            wanted = [True] * len(closed.jaxpr.outvars)
            results, found, left = self._evaluate(closed, [*values[:n], *carry, *step], own, wanted, inner)
            self._refuse(left, "is handed on by a scan")
            return (results[: m - n], i + 1), results[m - n :], found

        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), values[m:])
        start = (values[n:m], jnp.int32(0))
        _, _, shapes = jax.eval_shape(body, start, first)
        stacked = {place for place in shapes if any(loop == context.path for _, loop in self.uses[place].view.stack)}

        def with_sums(state: Any, step: Any) -> Any:
            inner, sums = state
            inner, results, found = body(inner, step)
            sums = {place: jax.tree.map(jnp.add, total, found[place]) for place, total in sums.items()}
            return (inner, sums), (results, {place: found[place] for place in stacked})

        zeros = _zeros({place: shape for place, shape in shapes.items() if place not in stacked})
        (last, sums), (results, slices) = jax.lax.scan(
            with_sums, (start, zeros), values[m:], length, params["reverse"], params["unroll"]
        )
        return [*last[0], *results], {**sums, **slices}

    def _while(self, equation: Any, values: list[Any], views: list[View | None], context: _Context) -> tuple[list[Any], Found]:
        params = equation.params
        closed, test = params["body_jaxpr"], params["cond_jaxpr"]
        n, m = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        self._refuse(views[:n], "decides how long a loop runs")
        self._refuse(views[m:], "is carried through a loop")
        own = [*views[n:m], *([None] * (len(values) - m))]

        def body(state: Any) -> Any:
            carry, i = state
            inner = context.inner("body", i, _UNKNOWN_STEPS)
            results, found, left = self._evaluate(closed, [*values[n:m], *carry], own, [True] * len(carry), inner)
            self._refuse(left, "is handed on by a loop")
            return (results, i + 1), found

        start = (values[m:], jnp.int32(0))
        _, shapes = jax.eval_shape(body, start)

        def with_sums(state: Any) -> Any:
            inner, sums = state
            inner, found = body(inner)
            return inner, jax.tree.map(jnp.add, sums, found)

        def goes_on(state: Any) -> Any:
            return core.jaxpr_as_fun(test)(*values[:n], *state[0][0])[0]

        (last, _), sums = jax.lax.while_loop(goes_on, with_sums, (start, _zeros(shapes)))
        return last, sums

    def _cond(self, equation: Any, values: list[Any], views: list[View | None], context: _Context) -> tuple[list[Any], Found]:
        branches = equation.params["branches"]
        self._refuse(views[:1], "decides which branch is taken")

        def branch(number: int) -> Callable[..., Any]:
            def run(*operands: Any) -> Any:
                closed = branches[number]
                inner = context.inner(str(number))
                results, found, left = self._evaluate(closed, operands, views[1:], [True] * len(equation.outvars), inner)
                self._refuse(left, "is handed on by a branch")
                return results, found

            return run

        runs = [branch(number) for number in range(len(branches))]
        shapes: Found = {}
        for run in runs:
            shapes.update(jax.eval_shape(run, *values[1:])[1])

        def with_all(run: Callable[..., Any]) -> Callable[..., Any]:
            def padded(*operands: Any) -> Any:
                results, found = run(*operands)
                return results, {**_zeros(shapes), **found}

            return padded

        return jax.lax.switch(values[0], [with_all(run) for run in runs], *values[1:])


def _zeros(shapes: Found) -> Found:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _live(jaxpr: Any, wanted: Sequence[bool]) -> list[tuple[Any, list[bool]]]:
    """The equations that wanted results need, each with which of its own results are needed."""
    live = {atom for atom, want in zip(jaxpr.outvars, wanted, strict=True) if want and not isinstance(atom, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        own = [v in live for v in equation.outvars]
        if any(own):
            kept.append((equation, own))
            live.update(atom for atom in equation.invars if not isinstance(atom, core.Literal))
    return kept[::-1]
