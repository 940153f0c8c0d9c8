"""What the engine keeps on the devices from one call to the next: prefixes of the network, and copies for every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from bqjax.sensitivity import processes as hosts

__all__ = ["Prefixes"]


class Prefixes:
    """Prefixes for the leaves of the last call and for the values that all other leaves had in it.

    Args:
      mesh: the devices that need the arrays.
      cache_bytes: what the prefixes of single batches may take together.
    """

    def __init__(self, mesh: Mesh, cache_bytes: int):
        self._mesh = mesh
        self.cache_bytes = cache_bytes
        self.forget()

    def forget(self) -> None:
        """Drops everything."""
        self._of: tuple[tuple[str, ...], list[Any]] = ((), [])
        self._alone: dict[int, list[jax.Array]] = {}
        self._joint: Any = None
        self._copies: dict[int, tuple[Any, jax.Array]] = {}

    def forget_unless(self, names: tuple[str, ...], fixed: list[Any]) -> None:
        """Drops everything unless it is for these leaves and these values of the other leaves."""
        # Compared by identity; the arrays are held here, so that no address is used twice.
        old_names, old = self._of
        if old_names != names or len(old) != len(fixed) or any(a is not b for a, b in zip(old, fixed, strict=True)):
            self.forget()
            self._of = names, fixed

    def alone(self, i: int, compute: Callable[[], list[jax.Array]]) -> list[jax.Array]:
        """The prefix of batch ``i``, kept as long as there is room."""
        kept = self._alone.get(i)
        if kept is None:
            # On one device of each process: computed anew it costs less than sent, and is the same.
            kept = self.on_devices(compute())
            if sum(k.nbytes for ks in (kept, *self._alone.values()) for k in ks) <= self.cache_bytes:
                self._alone[i] = kept
        return kept

    def joint(self, compute: Callable[[], Any]) -> Any:
        """The prefixes of all batches together, kept; whether they have room is for the caller to see to."""
        if self._joint is None:
            self._joint = self.on_devices(compute())
        return self._joint

    def on_devices(self, tree: Any) -> Any:
        """Arrays that every process has, whole on all devices of the mesh."""
        return tree if self._mesh.size == 1 else jax.tree.map(partial(hosts.replicated, self._mesh), tree)

    def remembered(self, arrays: Sequence[Any]) -> list[Any]:
        """As :meth:`on_devices`, without a copy of those that an earlier call copied."""
        if self._mesh.size == 1:
            return list(arrays)
        # Held with their originals, so that no address is used twice.
        for x in arrays:
            if id(x) not in self._copies:
                self._copies[id(x)] = x, hosts.replicated(self._mesh, x)
        return [self._copies[id(x)][1] for x in arrays]
