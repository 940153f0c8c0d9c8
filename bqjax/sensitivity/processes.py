"""Multi-process evaluation: one sweep on the devices of all processes that ``jax.distributed`` has joined.

Every process runs the same program on the same parameters and batches. Candidates are dealt over the devices of all of
them; what the devices share is copied to each from its own process. Nothing is communicated while candidates are
scored: the processes exchange their sums once a call, as bytes, so that float64 survives where JAX has it disabled.
An exchange is therefore also where a process notices that another one was lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bqjax.core.journal import Journal

__all__ = ["SharedJournal", "check_same", "dealt", "default_mesh", "fetch", "from_first", "from_owners", "is_shared", "replicated"]


def default_mesh(axis: str) -> Mesh:
    """All devices of all processes, or the one that ``jax.default_device`` names, as a mesh of one axis."""
    named = jax.config.jax_default_device  # type: ignore[attr-defined]  # this thread's
    return Mesh(np.array([named] if isinstance(named, jax.Device) else jax.devices()), (axis,))


def is_shared(mesh: Mesh) -> bool:
    """Whether a mesh takes in other processes, and not this one alone.

    Raises:
      ValueError: it takes in some processes and not others, or not this one.
    """
    processes = {device.process_index for device in mesh.devices.flat}
    if processes == {jax.process_index()}:
        return False
    if len(processes) != jax.process_count():
        raise ValueError(
            f"a mesh takes devices of this process ({jax.process_index()}) or of all {jax.process_count()} processes, "
            f"got one of processes {', '.join(map(str, sorted(processes)))}"
        )
    return True


def _own(mesh: Mesh) -> list[tuple[int, Any]]:
    """The devices of this process, and their places along the mesh."""
    return [(i, d) for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]


def replicated(mesh: Mesh, array: Any) -> jax.Array:
    """An array that every process has, as one global array that is whole on each device.

    Raises:
      ValueError: the array is spread over several processes.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if not array.is_fully_replicated:
            raise ValueError(f"an array of shape {array.shape} is spread over several processes: give each all of it")
        array = array.addressable_data(0)
    copies = [jax.device_put(array, device) for _, device in _own(mesh)]
    return jax.make_array_from_single_device_arrays(copies[0].shape, NamedSharding(mesh, PartitionSpec()), copies)


def dealt(mesh: Mesh, array: Any) -> jax.Array:
    """An array ``[devices, ...]`` that every process has, as one global array with one row on each device."""
    rows = [jax.device_put(array[i : i + 1], device) for i, device in _own(mesh)]
    return jax.make_array_from_single_device_arrays(array.shape, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])), rows)


def fetch(tree: Any) -> Any:
    """A pytree of arrays on the host. Of a global array the rows of other processes are left 0."""

    def own_rows(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return array
        out = np.zeros(array.shape, array.dtype)
        for shard in array.addressable_shards:
            out[shard.index] = shard.data
        return out

    return jax.device_get(jax.tree.map(own_rows, tree))


def _exchange(function: Callable[[Any], Any], array: np.ndarray) -> np.ndarray:
    """An exchange between all processes; one that cannot be had says why."""
    try:
        return np.asarray(function(array))
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            f"a process was lost: process {jax.process_index()} of {jax.process_count()} gets no answer from the others. "
            "The state file, where one was named, holds what was finished: start all processes again, or one alone, "
            f"to go on from there. JAX says: {str(error).splitlines()[0][:200]}"
        ) from error


def _gather(array: np.ndarray) -> np.ndarray:
    """An array of each process, ``[processes, ...]``, bit for bit."""
    data = np.frombuffer(array.tobytes(), np.uint8)
    gathered = _exchange(multihost_utils.process_allgather, data)
    return np.frombuffer(gathered.tobytes(), array.dtype).reshape(-1, *array.shape)


def from_owners(mesh: Mesh, sums: np.ndarray) -> np.ndarray:
    """An array ``[n, devices, ...]`` put together from the rows that each process has for its own devices."""
    owners = [device.process_index for device in mesh.devices.flat]
    return np.moveaxis(_gather(sums)[owners, :, np.arange(len(owners))], 0, 1)


def from_first(array: np.ndarray) -> np.ndarray:
    """The first process's array, on every process, so that all take the same decisions."""
    return _gather(array)[0]


def _broadcast(value: Any) -> Any:
    """The first process's JSON data, on every process."""
    data = json.dumps(value).encode() if jax.process_index() == 0 else b""
    size = int(_exchange(multihost_utils.broadcast_one_to_all, np.array([len(data)], np.int32))[0])
    padded = np.zeros(1 << size.bit_length(), np.uint8)  # few different sizes are compiled
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return json.loads(_exchange(multihost_utils.broadcast_one_to_all, padded)[:size].tobytes())


def check_same(digests: Mapping[str, str]) -> None:
    """Checks that all processes were given the same, by digests of equal length.

    Raises:
      ValueError: on every process, what differs.
    """
    found = _gather(np.array([list(digest.encode()) for digest in digests.values()], np.uint8))
    differ = [name for i, name in enumerate(digests) if (found[:, i] != found[:1, i]).any()]
    if differ:
        raise ValueError(f"the processes were given different {', '.join(differ)}: each needs the same, and all of it")


class SharedJournal(Journal):
    """A journal of all processes, of which the first alone reads and writes the file.

    The file need not be on a shared disk: what the first process finds in it is sent to the others, so that all agree
    on what is answered and take the same measurements, in which all of them take part.

    Args:
      path, fingerprint: see :class:`~bqjax.core.journal.Journal`; the others than the first process do not
        touch the path.

    Raises:
      ValueError: on every process, what the first process finds wrong with the file.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, fingerprint: Mapping[str, str] | None = None):
        first = jax.process_index() == 0
        error: Exception | None = None
        try:
            super().__init__(path if first else None, fingerprint)
        except (OSError, ValueError) as found:
            error = found
        values, problem = _broadcast([self._values, error and str(error)])
        if error is not None:
            raise error
        if problem is not None:
            raise ValueError(f"the first process cannot use the state file: {problem}")
        self._values = values
        self._from_file = set(values)
