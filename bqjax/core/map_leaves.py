"""Batched map over leaves: one compilation for all leaves of a shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bqjax.core.gather import devices_of, gathered

__all__ = ["by_shape"]


def by_shape(function: Callable[..., Any], arguments: Mapping[Any, tuple[Any, ...]]) -> dict[Any, Any]:
    """Applies a function to many tuples of arrays, compiled once for all those of the same shapes on the same device.

    ``function`` must be the same object from call to call: it is a static argument.
    """
    alike: dict[Any, dict[Any, Any]] = {}
    for key, args in arguments.items():
        leaves, structure = jax.tree.flatten(args)
        leaves = gathered(leaves)
        kind = structure, devices_of(leaves), tuple((x.shape, str(x.dtype)) for x in leaves)
        alike.setdefault(kind, {})[key] = jax.tree.unflatten(structure, leaves)
    results: dict[Any, Any] = {}
    for same in alike.values():
        results.update(zip(same, _mapped(function, list(same.values())), strict=True))
    return results


@functools.partial(jax.jit, static_argnums=0)
def _mapped(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *arguments)
    out = lax.map(lambda args: function(*args), stacked)
    return [jax.tree.map(lambda x, i=i: x[i], out) for i in range(len(arguments))]
