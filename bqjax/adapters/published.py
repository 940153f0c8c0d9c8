"""Weights of other frameworks put into Flax NNX models by a table of names, with one report of all that does not fit.

:mod:`bqjax.adapters.torch` is for models whose layers are named as in the file. Here the file's names are other ones:
torchvision's VGG counts its layers, and Keras has names of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.core.tree import named_leaves

__all__ = ["load_published"]

_SHOWN = 12


def load_published(
    model: nnx.Module,
    tensors: Mapping[str, Any],
    name_of: Callable[[str], str],
    convert: Callable[[str, np.ndarray], np.ndarray] = lambda name, tensor: tensor,
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    source: str = "the weights",
) -> nnx.Module:
    """A copy of the model that holds published parameters and BatchNorm statistics; ``model`` itself is unchanged.

    Args:
      model: gives the names, shapes and dtypes. It may be abstract (made under ``nnx.eval_shape``) in parameters and
        statistics.
      tensors: arrays by the file's names. They are cast to the dtypes of the model.
      name_of: the file's name of a variable such as ``conv1_1/kernel``.
      convert: ``convert(variable, tensor)``, the tensor in the order of axes of the variable.
      ignored: which of the file's names are left out because the model has no use for them.
      source: what errors call ``tensors``.

    Returns:
      A model of the same class.

    Raises:
      ValueError: tensors are missing, unexpected, not floating point, or, after ``convert``, of another shape: one message
        lists them all (the first twelve, and how many more). The model is abstract in more than parameters and statistics.

    Example:
      >>> model = nnx.eval_shape(lambda: nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0)))
      >>> model = load_published(model, {"w": np.array([[1.0], [2.0]])}, {"kernel": "w"}.__getitem__)
      >>> model(jnp.ones((1, 2))).tolist()
      [[3.0]]
    """
    graph, state, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.to_pure_dict(rest))):
        raise ValueError(f"the abstract {type(model).__name__} holds more than parameters and statistics: pass a concrete model")
    expected = nnx.to_pure_dict(state)
    names = {variable: name_of(variable) for variable in named_leaves(expected)}
    problems, values = [], []
    for variable, leaf in named_leaves(expected).items():
        name = names[variable]
        if name not in tensors:
            problems.append(f"{name} is missing (for {variable}, {tuple(leaf.shape)})")
            continue
        tensor = np.asarray(tensors[name])
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name} is {tensor.dtype}, not floating point")
            continue
        try:
            array = convert(variable, tensor)
        except ValueError:  # another number of axes
            array = tensor
        if array.shape != tuple(leaf.shape):
            problems.append(f"{name} has shape {tensor.shape}, {variable} needs {tuple(leaf.shape)}")
            continue
        values.append(jnp.asarray(array, leaf.dtype))
    known = set(names.values())
    problems += [
        f"{name} {np.shape(tensor)} has no place in the network"
        for name, tensor in tensors.items()
        if name not in known and not ignored(name)
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{source} does not fit {type(model).__name__}: {'; '.join(problems[:_SHOWN])}{more}")
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(expected), values), nnx.to_pure_dict(rest))
