"""Compiled functions that outlive an evaluator: two scores that trace to the same program share them.

What a function closes over is an argument of what is compiled, so that the text of a traced program says all there is to say.
Programs whose text does not (an address, an array within a loop's body) are not shared. The last ones used are kept.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.sharding import Mesh

from bqjax.sensitivity.candidates import Timed
from bqjax.sensitivity.slicing import Program, Split, split

__all__ = ["Compiled", "compiled_for"]

_MOST = 64  # programs that are kept
_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_default_device")
_LOCK = threading.Lock()  # rows run side by side
_KEPT: OrderedDict[str, Compiled] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Compiled:
    """Compiled halves of a program split at some inputs.

    Attributes:
      parts: the split program, without the values of what it closes over.
      prefix: compiled, see :meth:`bqjax.sensitivity.slicing.Split.prefix`.
      suffixes: compiled functions, by what distinguishes them.
      links: compiled, from this prefix to that of another split (:meth:`bqjax.sensitivity.slicing.Split.onwards`), by the inputs
        that vary there.
    """

    parts: Split
    prefix: Timed
    suffixes: dict[Any, Timed] = field(default_factory=dict)
    links: dict[tuple[int, ...], Timed] = field(default_factory=dict)


class _Unsaid(Exception):
    """The text of a program does not say all of it."""


def compiled_for(program: Program, varying: Sequence[int], mesh: Mesh) -> Compiled:
    """The compiled halves of a program, those of an equal one where there is one.

    Args:
      program: traced.
      varying: positions of the inputs that vary.
      mesh: of the devices that it runs on.
    """

    def made() -> Compiled:
        parts = split(replace(program, constants=dict.fromkeys(program.constants)), varying)
        return Compiled(parts, Timed(parts.prefix))

    try:
        settings = [str(getattr(jax.config, name, None)) for name in _SETTINGS]  # this thread's
        devices = [str(d) for d in mesh.devices.flat]
        said = repr((_text(program), sorted(varying), mesh.axis_names, devices, settings))
    except _Unsaid:
        return made()
    key = hashlib.sha256(said.encode()).hexdigest()
    with _LOCK:
        if key not in _KEPT:
            _KEPT[key] = made()
        _KEPT.move_to_end(key)
        while len(_KEPT) > _MOST:
            _KEPT.popitem(last=False)
        return _KEPT[key]


def _text(program: Program) -> Any:
    """All that a program computes, as data with a faithful ``repr``."""

    def atom(a: Any) -> Any:
        return a if isinstance(a, int) else (str(a.aval), np.asarray(a.val).tobytes())

    steps = [
        (
            step.equation.primitive.name,
            [(name, _said(value)) for name, value in sorted(step.equation.params.items())],
            [atom(a) for a in step.inputs],
            step.outputs,
            [str(v.aval) for v in step.equation.outvars],
        )
        for step in program.steps
    ]
    constants = [(i, str(jax.typeof(value))) for i, value in program.constants.items()]
    shapes = {a: str(v.aval) for s in program.steps for a, v in zip(s.inputs, s.equation.invars, strict=True) if isinstance(a, int)}
    return steps, program.inputs, sorted(shapes.items()), constants, [atom(a) for a in program.outputs], str(program.out_tree)


def _said(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [type(value).__name__, *map(_said, value)]
    if isinstance(value, np.ndarray | jax.Array):
        raise _Unsaid
    if isinstance(value, core.ClosedJaxpr):
        if len(value.consts):
            raise _Unsaid
        value = value.jaxpr
    if hasattr(value, "eqns"):
        for equation in value.eqns:
            for inner in equation.params.values():
                _said(inner)
    text = str(value)
    if " at 0x" in text or "..." in text:
        raise _Unsaid
    return text
