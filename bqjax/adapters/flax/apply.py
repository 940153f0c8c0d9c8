"""Flax networks as a plain pytree of parameters and a pure function of them.

NNX: :func:`nnx_params` gives the nested dict of a model's ``nnx.Param`` arrays, :func:`nnx_apply` the function that
runs the model with other values for them, :func:`nnx_with_params` a model that holds them. Linen:
:func:`linen_apply` splits its variables in the same way. The keys are those of the layers, so that one rule
(``"conv1/kernel"``) fits both.

Modules in an ``nnx.List`` have integer keys (``{"layers": {0: {"kernel": ...}}}``), which stay integers in the dict;
their leaves are named ``layers/0/kernel``. Parameters are matched to a model by these names, so a tree whose keys went
through a file as strings (``"0"``) fits as well.

Everything besides the parameters (running statistics of BatchNorm, keys of Dropout) is closed over as it was when the
function was made, in evaluation mode: calls are deterministic and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from bqjax.core.leaves import is_compressed
from bqjax.core.tree import named_leaves

__all__ = ["linen_apply", "nnx_apply", "nnx_params", "nnx_with_params"]

Apply = Callable[..., Any]


def nnx_params(model: nnx.Module) -> dict[str, Any]:
    """The parameters of an NNX model.

    Args:
      model: any NNX module.

    Returns:
      A nested dict of the arrays of its ``nnx.Param`` variables (and of subclasses of it). A parameter that two layers
      share is there once, under the first of its names.

    Raises:
      ValueError: the model has no parameters.

    Example:
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> {name: array.shape for name, array in nnx_params(model).items()}
      {'bias': (3,), 'kernel': (2, 3)}
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    if not params:
        raise ValueError(f"{type(model).__name__} has no nnx.Param")
    return params


def nnx_with_params(model: nnx.Module, params: Any) -> nnx.Module:
    """A copy of the model that holds other parameters; ``model`` itself is unchanged.

    Args:
      model: the model, whose other state and mode (training or evaluation) the copy has too.
      params: arrays of the structure and shapes of :func:`nnx_params`.

    Returns:
      A model of the same class.

    Raises:
      ValueError: ``params`` does not fit the model.

    Example:
      >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
      >>> other = nnx_with_params(model, {"kernel": jax.numpy.ones((1, 1)), "bias": jax.numpy.ones(1)})
      >>> other(jax.numpy.ones((1, 1))).tolist()
      [[2.0]]
    """
    graph, state, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, _fit(_shapes(nnx.to_pure_dict(state)), params), nnx.to_pure_dict(rest))


def nnx_apply(model: nnx.Module) -> Apply:
    """The model as a pure function of its parameters, in evaluation mode.

    Args:
      model: the model; it is not changed, and later changes to it do not reach the function.

    Returns:
      ``apply(params, *args, **kwargs)``, the output of the model called with these arguments. It is traceable
      (``jit``, ``vmap``, ``grad``), and raises ``ValueError`` where ``params`` does not fit the model. State that the
      model writes while it runs is dropped.

    Raises:
      ValueError: the model has no parameters.

    Example:
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx_apply(model)(nnx_params(model), jax.numpy.ones((4, 2))).shape
      (4, 3)
    """
    nnx_params(model)  # refuses a model without parameters
    frozen = nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)
    graph, state, rest = nnx.split(frozen, nnx.Param, ...)
    expected = _shapes(nnx.to_pure_dict(state))
    # Plain arrays, not variables: merging makes fresh variables in every trace, which the model may then write to.
    constants = nnx.to_pure_dict(rest)

    def apply(params: Any, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graph, _fit(expected, params), constants)(*args, **kwargs)

    return apply


def linen_apply(module: linen.Module, variables: Mapping[str, Any], **call: Any) -> tuple[dict[str, Any], Apply]:
    """A Linen module's parameters, and the module as a pure function of them.

    Args:
      module: the module.
      variables: what ``module.init`` returned: ``"params"`` and other collections (``"batch_stats"``), which are closed
        over.
      **call: keyword arguments of every call, for instance ``train=False``.

    Returns:
      ``(params, apply)``: the nested dict under ``"params"``, and ``apply(params, *args, **kwargs)``, the output of
      ``module.apply``. ``apply`` is traceable and raises ``ValueError`` where ``params`` does not fit.

    Raises:
      ValueError: ``variables`` has no ``"params"``.

    Example:
      >>> module, x = linen.Dense(3), jax.numpy.ones((4, 2))
      >>> params, apply = linen_apply(module, module.init(jax.random.key(0), x))
      >>> apply(params, x).shape
      (4, 3)
    """
    collections = dict(linen.unbox(variables))
    params = _plain(collections.pop("params", {}))
    if not params:
        raise ValueError(f'{type(module).__name__}: the variables have no "params", only {sorted(collections)}')
    expected = _shapes(params)

    def apply(params: Any, *args: Any, **kwargs: Any) -> Any:
        return module.apply({**collections, "params": _fit(expected, params)}, *args, **(call | kwargs))

    return params, apply


def _plain(tree: Any) -> Any:
    """Nested mappings, ``FrozenDict`` among them, as nested dicts."""
    return {key: _plain(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def _shapes(params: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)), params)


def _fit(expected: Any, params: Any) -> Any:
    """``params`` in the structure of ``expected``, matched by leaf name, or a ValueError that names what is wrong."""
    shapes, given = named_leaves(expected), named_leaves(params)
    for name, leaf in shapes.items():
        if name not in given:
            raise ValueError(f"the model has a parameter {name!r} of shape {leaf.shape}, which params lack")
    for name, leaf in given.items():
        if name not in shapes:
            raise ValueError(f"params have a leaf {name!r}, which the model does not; its parameters are {', '.join(shapes)}")
        if is_compressed(leaf):
            raise ValueError(f"leaf {name!r} is compressed: pass bqjax.decode(params)")
        if np.shape(leaf) != shapes[name].shape:
            raise ValueError(f"leaf {name!r} must have shape {shapes[name].shape}, got {np.shape(leaf)}")
    return jax.tree.unflatten(jax.tree.structure(expected), [given[name] for name in shapes])
