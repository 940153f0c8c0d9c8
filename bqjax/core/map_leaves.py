"""Batched map over leaves: one compilation for all leaves of a shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["by_shape"]


def by_shape(function: Callable[..., Any], arguments: Mapping[Any, tuple[Any, ...]]) -> dict[Any, Any]:
    """Applies a function to many tuples of arrays, compiled once for all those of the same shapes.

    ``function`` must be the same object from call to call: it is a static argument.
    """
    alike: dict[Any, list[Any]] = {}
    for key, args in arguments.items():
        leaves, structure = jax.tree.flatten(args)
        alike.setdefault((structure, tuple((x.shape, str(x.dtype)) for x in leaves)), []).append(key)
    results: dict[Any, Any] = {}
    for keys in alike.values():
        results.update(zip(keys, _mapped(function, [arguments[key] for key in keys]), strict=True))
    return results


@functools.partial(jax.jit, static_argnums=0)
def _mapped(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *arguments)
    out = lax.map(lambda args: function(*args), stacked)
    return [jax.tree.map(lambda x, i=i: x[i], out) for i in range(len(arguments))]
