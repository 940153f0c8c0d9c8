"""Partial evaluation of a traced function: what some of its inputs do not change (prefix), and the rest (suffix).

A sweep perturbs one leaf thousands of times. Everything that the network computes before that leaf is used is the
same for every perturbation, so it is evaluated once a batch and kept. The split is made on the jaxpr: an equation
goes to the suffix if any of its inputs depends on the leaf. Calls (``jit``, ``custom_jvp``, ``custom_vjp``, ``remat``) are
looked into; loops and branches (``scan``, ``while``, ``cond``) go to the suffix as a whole if they are touched.

Equations are bound again while JAX traces, the documented pattern for custom interpreters
(https://docs.jax.dev/en/latest/notebooks/Writing_custom_interpreters_in_Jax.html), so that no ``Jaxpr`` is built by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

__all__ = ["Program", "Split", "bind", "called", "split", "trace"]

# Primitives that only call a jaxpr, and the parameter that holds it. They are inlined: nothing here is differentiated,
# so the rules that the custom ones carry are not needed.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def called(equation: Any) -> Any:
    """The closed jaxpr of an equation that only calls one, or None."""
    inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
    return core.ClosedJaxpr(inner, ()) if inner is not None and not hasattr(inner, "consts") else inner


def bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    """The results of one equation on other values. Traceable."""
    # Older releases give (functions, parameters), newer ones put the functions among the parameters.
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        results = equation.primitive.bind(*functions, *values, **params)
    return list(results) if equation.primitive.multiple_results else [results]


Atom = int | core.Literal
"""A value of a program: the number of a variable, or a literal."""


class _Step(NamedTuple):
    equation: Any
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A traced function as one flat list of equations over numbered variables.

    Attributes:
      steps: equations in order, calls inlined.
      inputs: variables of the flattened arguments.
      constants: variables of what the function closed over, and their values.
      outputs: of the flattened result.
      out_tree: structure of the result.
    """

    steps: tuple[_Step, ...] = field(repr=False)  # JAX shows programs in its error messages
    inputs: tuple[int, ...]
    constants: Mapping[int, Any] = field(repr=False)
    outputs: tuple[Atom, ...]
    out_tree: Any


class _Flattener:
    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.constants: dict[int, Any] = {}
        self._by_identity: dict[int, int] = {}
        self._done: dict[Any, tuple[int, ...]] = {}
        self._count = 0

    def new(self) -> int:
        self._count += 1
        return self._count - 1

    def constant(self, value: Any) -> int:
        # One array that several calls close over stays one constant.
        if id(value) not in self._by_identity:
            variable = self._by_identity[id(value)] = self.new()
            self.constants[variable] = value
        return self._by_identity[id(value)]

    def inline(self, closed: Any, arguments: Sequence[Atom]) -> list[Atom]:
        jaxpr = closed.jaxpr
        env: dict[Any, Atom] = dict(zip(jaxpr.constvars, map(self.constant, closed.consts), strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Atom:
            return atom if isinstance(atom, core.Literal) else env[atom]

        for equation in jaxpr.eqns:
            inputs = tuple(map(read, equation.invars))
            inner = called(equation)
            if inner is not None:
                env.update(zip(equation.outvars, self.inline(inner, inputs), strict=True))
            else:
                env.update(zip(equation.outvars, self._computed(equation, inputs), strict=True))
        return list(map(read, jaxpr.outvars))

    def _computed(self, equation: Any, inputs: tuple[Atom, ...]) -> tuple[int, ...]:
        """The variables of an equation's results: those of an equal equation where there was one before.

        A score and predictions of the same network share its forward pass, which would else be kept twice.
        """
        known = None
        if not equation.effects:
            atoms = tuple(a if isinstance(a, int) else (str(a.aval), np.asarray(a.val).tobytes()) for a in inputs)
            known = equation.primitive, atoms, tuple(equation.params.items()), tuple(str(v.aval) for v in equation.outvars)
            try:
                if known in self._done:
                    return self._done[known]
            except TypeError:  # parameters that cannot be looked up
                known = None
        outputs = tuple(self.new() for _ in equation.outvars)
        self.steps.append(_Step(equation, inputs, outputs))
        if known is not None:
            self._done[known] = outputs
        return outputs


def trace(function: Callable[..., Any], *args: Any) -> Program:
    """Traces ``function(*args)``; only shapes and dtypes of ``args`` matter.

    Raises:
      TypeError: from JAX, where the function cannot be traced.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    flattener = _Flattener()
    inputs = tuple(flattener.new() for _ in closed.jaxpr.invars)
    outputs = flattener.inline(closed, inputs)
    return Program(tuple(flattener.steps), inputs, flattener.constants, tuple(outputs), jax.tree.structure(shape))


@dataclass(frozen=True)
class Split:
    """A partially evaluated program: a prefix of what is fixed, and a suffix.

    Attributes:
      program: the whole.
      varying: positions of the inputs that vary; the others are fixed.
      kept: variables that the prefix computes for the suffix.
      unused: True where no output depends on the varying inputs.
      prefix_steps, suffix_steps: the equations of each part, without those that nothing needs.
    """

    program: Program = field(repr=False)
    varying: tuple[int, ...]
    kept: tuple[int, ...]
    unused: bool
    prefix_steps: tuple[_Step, ...] = field(repr=False)
    suffix_steps: tuple[_Step, ...] = field(repr=False)

    @property
    def suffix_primitives(self) -> set[str]:
        """Names of the primitives in the suffix; what runs inside loops and branches goes by the name of the loop."""
        return {step.equation.primitive.name for step in self.suffix_steps}

    @property
    def suffix_operations(self) -> float:
        """About how many multiplications and results the suffix has, loops counted once a step."""
        return sum(map(_operations, (step.equation for step in self.suffix_steps)))

    def _environment(self, constants: Sequence[Any], fixed: Sequence[Any]) -> dict[int, Any]:
        program = self.program
        positions = [v for i, v in enumerate(program.inputs) if i not in self.varying]
        return {**dict(zip(program.constants, constants, strict=True)), **dict(zip(positions, fixed, strict=True))}

    def prefix(self, constants: Sequence[Any], fixed: Sequence[Any]) -> list[Any]:
        """What the suffix needs and the varying inputs do not change. Traceable.

        Args:
          constants: values of ``program.constants``. They are arguments, so that under ``jit`` they are not compiled in.
          fixed: the flattened inputs that do not vary, in order.
        """
        env = self._environment(constants, fixed)
        _run(self.prefix_steps, env)
        return [env[v] for v in self.kept]

    def suffix(self, kept: Sequence[Any], constants: Sequence[Any], fixed: Sequence[Any], varying: Sequence[Any]) -> Any:
        """The function's result, from what :meth:`prefix` gave for the same constants and fixed inputs. Traceable."""
        program = self.program
        env = self._environment(constants, fixed)
        env.update(zip(self.kept, kept, strict=True))
        env.update(zip((program.inputs[i] for i in self.varying), varying, strict=True))
        _run(self.suffix_steps, env)
        return jax.tree.unflatten(program.out_tree, [_read(env, atom) for atom in program.outputs])

    def onwards(self, later: Split, kept: Sequence[Any], constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """What ``later.prefix`` gives, from what :meth:`prefix` gave: the steps between two cuts of one program. Traceable.

        Args:
          later: the same program split at other inputs.
          kept: from :meth:`prefix`. The inputs that vary here may have changed since.
          constants: as in :meth:`prefix`.
          inputs: all flattened inputs, those that vary among them.
        """
        program = self.program
        env = {**dict(zip(program.constants, constants, strict=True)), **dict(zip(program.inputs, inputs, strict=True))}
        env.update(zip(self.kept, kept, strict=True))
        _run(_needed(later.prefix_steps, later.kept, known=env), env)
        return [env[v] for v in later.kept]


def _operations(equation: Any) -> float:
    """Products of convolutions and matrices, and the results of everything else."""
    results = float(sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars))
    if equation.primitive.name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
        return results * math.prod(kernel) / kernel[spec[0]]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return results * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    inner = [x for value in equation.params.values() for x in (value if isinstance(value, tuple | list) else [value])]
    bodies = [getattr(x, "jaxpr", x) for x in inner if hasattr(getattr(x, "jaxpr", x), "eqns")]
    return results + equation.params.get("length", 1) * sum(_operations(e) for body in bodies for e in body.eqns)


def _read(env: Mapping[int, Any], atom: Atom) -> Any:
    return atom.val if isinstance(atom, core.Literal) else env[atom]


def _run(steps: Sequence[_Step], env: dict[int, Any]) -> None:
    for equation, inputs, outputs in steps:
        env.update(zip(outputs, bind(equation, [_read(env, a) for a in inputs]), strict=True))


def _needed(steps: Sequence[_Step], wanted: Collection[int], known: Collection[int] = ()) -> tuple[_Step, ...]:
    """The steps without which ``wanted`` cannot be had from what is known."""
    known = set(known)
    live = set(wanted) - known
    needed = []
    for step in reversed(steps):
        if live.intersection(step.outputs):
            needed.append(step)
            live.update(v for v in _variables(step.inputs) if v not in known)
    return tuple(needed[::-1])


def _variables(atoms: Sequence[Atom]) -> list[int]:
    return [a for a in atoms if isinstance(a, int)]


def split(program: Program, varying: Collection[int]) -> Split:
    """Partial evaluation: splits a program at some of its flattened inputs.

    Args:
      program: from :func:`trace`.
      varying: positions of the inputs that will vary.

    Example:
      >>> a, b = jax.numpy.ones(3), jax.numpy.float32(5.0)
      >>> parts = split(trace(lambda a, b: (a * 2).sum() + b, a, b), [1])
      >>> kept = parts.prefix([], [a])
      >>> [float(k) for k in kept], float(parts.suffix(kept, [], [a], [b])), len(parts.suffix_steps)
      ([6.0], 11.0, 1)
    """
    varying = tuple(sorted(set(varying)))
    depends = {program.inputs[i] for i in varying}
    wanted = _variables(program.outputs)
    prefix: list[_Step] = []
    suffix: list[_Step] = []
    for step in _needed(program.steps, wanted):
        touched = not depends.isdisjoint(_variables(step.inputs))
        if touched:
            depends.update(step.outputs)
        (suffix if touched else prefix).append(step)
    reads = {a for step in suffix for a in _variables(step.inputs)} | set(wanted)
    computed = {v for step in prefix for v in step.outputs}
    kept = tuple(sorted(reads & computed))
    return Split(program, varying, kept, depends.isdisjoint(wanted), _needed(prefix, kept), tuple(suffix))
