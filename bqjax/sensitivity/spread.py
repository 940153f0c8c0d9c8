"""Sums over batches that are dealt over the devices of a mesh, those of other processes too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bqjax.sensitivity import processes as hosts

__all__ = ["smaller", "summed"]

_AXIS = "batches"


def summed(
    function: Callable[[Any, Any, jax.Array], Any],
    params: Any,
    batches: Sequence[Any],
    *,
    key: jax.Array,
    draws: int = 1,
    mesh: Mesh | None = None,
) -> Any:
    """``sum over batches and draws of function(params, batch, key_of_both)``, on the host.

    Each device takes a whole batch at a time, so that another number of devices gives the same to rounding; batches of one
    shape share a compilation.

    Args:
      function: gives a pytree of arrays of the same shapes for all batches. Traceable.
      params: whole on every device.
      batches: non-empty; every process has all of them.
      key: a ``jax.random`` key; draw ``j`` of batch ``i`` gets number ``i * draws + j`` of it.
      draws: how often each batch is taken.
      mesh: of one axis; None takes the device that ``jax.default_device`` names, or else all.

    Raises:
      ValueError: a mesh that leaves out some of the processes.
    """
    mesh = mesh if mesh is not None else hosts.default_mesh(_AXIS)
    hosts.is_shared(mesh)
    devices, axis = mesh.devices.size, mesh.axis_names[0]

    def on_device(params: Any, batch: Any, number: Any, counts: Any) -> Any:
        batch, number, counts = jax.tree.map(lambda x: x[0], (batch, number, counts))
        found = function(params, batch, jax.random.fold_in(key, number))
        return found if devices == 1 else jax.tree.map(lambda x: jax.lax.psum(jnp.where(counts, x, 0), axis), found)

    everywhere, dealt = PartitionSpec(), PartitionSpec(axis)
    spread = partial(jax.shard_map, mesh=mesh, in_specs=(everywhere, dealt, dealt, dealt), out_specs=everywhere, check_vma=False)
    step = jax.jit(spread(on_device))
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
    params = jax.tree.map(partial(hosts.replicated, mesh), params)
    totals = None
    for group in _alike(batches):
        jobs = [(i, i * draws + draw) for i in group for draw in range(draws)]
        for start in range(0, len(jobs), devices):
            own = jobs[start : start + devices]
            counts = np.arange(devices) < len(own)
            own = [*own, *([own[0]] * (devices - len(own)))]  # a device without a batch of its own counts nothing
            batch = jax.tree.map(lambda *x: hosts.dealt(mesh, np.stack([np.asarray(a) for a in x])), *(batches[i] for i, _ in own))
            numbers = hosts.dealt(mesh, np.array([number for _, number in own], np.int32))
            new = step(params, batch, numbers, hosts.dealt(mesh, counts))
            totals = new if totals is None else add(totals, new)
    return hosts.fetch(jax.tree.map(lambda x: x.addressable_data(0), totals))


def smaller(batches: Sequence[Any], sizes: Sequence[int], most: int) -> tuple[list[Any], list[int]]:
    """Batches of at most so many examples, and their sizes.

    A batch is cut where all its arrays have its number of examples as their first axis, into equal parts if a number of parts
    near the least one divides it.

    Args:
      batches, sizes: batches and their numbers of examples.
      most: examples.
    """
    out, out_sizes = [], []
    for batch, size in zip(batches, sizes, strict=True):
        if size <= most or any(np.ndim(x) == 0 or len(x) != size for x in jax.tree.leaves(batch)):
            out.append(batch)
            out_sizes.append(size)
            continue
        step = next((n for n in range(most, most // 2, -1) if size % n == 0), most)
        for start in range(0, size, step):
            out.append(jax.tree.map(lambda x, a=start, b=start + step: x[a:b], batch))
            out_sizes.append(min(step, size - start))
    return out, out_sizes


def _alike(batches: Sequence[Any]) -> list[list[int]]:
    """Numbers of batches, those of the same shapes together."""
    groups: dict[Any, list[int]] = {}
    for i, batch in enumerate(batches):
        leaves, structure = jax.tree.flatten(batch)
        groups.setdefault((structure, tuple((np.shape(x), str(jnp.result_type(x))) for x in leaves)), []).append(i)
    return list(groups.values())
