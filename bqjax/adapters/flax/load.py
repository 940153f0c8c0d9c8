"""Weights of other frameworks loaded into Flax NNX models by a table of names, with one report of all that does not fit.

A table is the file's name of each variable, a mapping or a function, and a function that gives the variable's order of axes.
:mod:`bqjax.adapters.torch` has that of PyTorch; models whose published files have names of their own bring theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.core.tree import named_leaves

__all__ = ["nnx_load"]

_SHOWN = 12
_SHOWN_UNEXPECTED = 4


def nnx_load(
    model: nnx.Module,
    tensors: Mapping[str, Any],
    name_of: Callable[[str], str] | Mapping[str, str],
    convert: Callable[[str, np.ndarray], np.ndarray] = lambda name, tensor: tensor,
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    source: str = "the weights",
) -> nnx.Module:
    """A copy of the model that holds the parameters and BatchNorm statistics of a file; ``model`` itself is unchanged.

    Args:
      model: gives the names, shapes and dtypes. It may be abstract (made under ``nnx.eval_shape``) in parameters and
        statistics.
      tensors: arrays by the file's names. They are cast to the dtypes of the model.
      name_of: the file's name of a variable such as ``conv1_1/kernel``: a function, or a mapping with all of them.
      convert: ``convert(variable, tensor)``, the tensor in the order of axes of the variable.
      ignored: which of the file's names are left out because the model has no use for them.
      source: what errors call ``tensors``.

    Returns:
      A model of the same class.

    Raises:
      ValueError: tensors are missing, unexpected, not floating point, or, after ``convert``, of another shape: one message
        lists them (the first twelve, and how many more). The model is abstract in more than parameters and statistics.

    Example:
      >>> model = nnx.eval_shape(lambda: nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0)))
      >>> model = nnx_load(model, {"w": np.array([[1.0], [2.0]])}, {"kernel": "w"})
      >>> model(jnp.ones((1, 2))).tolist()
      [[3.0]]
    """
    graph, state, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.to_pure_dict(rest))):
        raise ValueError(f"the abstract {type(model).__name__} holds more than parameters and statistics: pass a concrete model")
    expected = nnx.to_pure_dict(state)
    names: dict[str, str] = {}
    problems, values = [], []
    for variable, leaf in named_leaves(expected).items():
        try:
            names[variable] = _name(variable, name_of, leaf.shape)
            values.append(jnp.asarray(_fitted(variable, leaf.shape, names[variable], tensors, convert), leaf.dtype))
        except _Misfit as problem:
            problems.append(str(problem))
    known = set(names.values())
    unexpected = [
        f"{name} {np.shape(tensor)} has no place in the network"
        for name, tensor in tensors.items()
        if name not in known and not ignored(name)
    ]
    if problems or unexpected:
        listed = "; ".join([*_listed(problems, _SHOWN), *_listed(unexpected, _SHOWN_UNEXPECTED)])
        raise ValueError(f"{source} does not fit {type(model).__name__}: {listed}")
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(expected), values), nnx.to_pure_dict(rest))


class _Misfit(Exception):
    """Why a variable gets no value."""


def _name(variable: str, name_of: Callable[[str], str] | Mapping[str, str], shape: tuple[int, ...]) -> str:
    """The file's name of a variable."""
    if not isinstance(name_of, Mapping):
        return name_of(variable)
    if variable not in name_of:
        raise _Misfit(f"no name is given for {variable}, {tuple(shape)}")
    return name_of[variable]


def _fitted(
    variable: str,
    shape: tuple[int, ...],
    name: str,
    tensors: Mapping[str, Any],
    convert: Callable[[str, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The variable's values from the file."""
    if name not in tensors:
        raise _Misfit(f"{name} is missing (for {variable}, {tuple(shape)})")
    tensor = np.asarray(tensors[name])
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise _Misfit(f"{name} is {tensor.dtype}, not floating point")
    try:
        array = convert(variable, tensor)
    except ValueError:  # another number of axes
        array = tensor
    if array.shape != tuple(shape):
        became = "" if array.shape == tensor.shape else f" (in Flax's order of axes {array.shape})"
        raise _Misfit(f"{name} has shape {tensor.shape}{became}, {variable} needs {tuple(shape)}")
    return array


def _listed(problems: list[str], most: int) -> list[str]:
    return problems[:most] + ([f"and {len(problems) - most} more"] if len(problems) > most else [])
