"""Leaves that lie on different devices, brought to one where they are computed with together, as those of a group are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["beside", "devices_of", "end_to_end", "gathered"]


def _devices(leaf: Any) -> frozenset[Any]:
    """Where a leaf lies; empty for NumPy arrays and while tracing."""
    placed = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return frozenset(leaf.sharding.device_set) if placed else frozenset()


def devices_of(leaves: Sequence[Any]) -> frozenset[Any]:
    """The devices on which some leaves lie; none for NumPy arrays and while tracing."""
    return frozenset().union(*map(_devices, leaves))


def gathered(leaves: Sequence[Any]) -> list[Any]:
    """The leaves as they are where they lie on the same devices; else all on one, the first of the first leaf's.

    Raises:
      ValueError: leaves lie on different devices, and not all of them are this process's.
    """
    places = [_devices(leaf) for leaf in leaves]
    if len({place for place in places if place}) < 2:
        return list(leaves)
    for leaf, place in zip(leaves, places, strict=True):
        if place and not leaf.is_fully_addressable:
            where = "; ".join(", ".join(sorted(map(str, each))) for each in dict.fromkeys(places))
            raise ValueError(
                f"leaves of one group lie on different devices of several processes ({where}), where they cannot be put together: "
                "place them alike, or give each a group of its own"
            )
    target = min(next(place for place in places if place), key=lambda device: device.id)
    return [jax.device_put(leaf, target) if place else leaf for leaf, place in zip(leaves, places, strict=True)]


def end_to_end(leaves: Sequence[Any], dtype: Any = None) -> jax.Array:
    """All entries of gathered leaves as one vector ``[n]``; one leaf by itself is not copied.

    Args:
      leaves: at least one.
      dtype: of the vector; None: that of the leaves.
    """
    flat = [jnp.ravel(leaf) if dtype is None else jnp.ravel(leaf).astype(dtype) for leaf in gathered(leaves)]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


def beside(leaf: Any, array: Any) -> Any:
    """An array computed from gathered leaves, put where ``leaf`` lies if that is one device."""
    here, there = _devices(array), _devices(leaf)
    return jax.device_put(array, next(iter(there))) if here and len(there) == 1 and here != there else array
