"""Evaluation of image classifiers: what each example adds to loss and accuracy, shared out over devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.data.source import Batch, Source
from train.image.objective import ImageObjective, Variables

__all__ = ["Devices", "evaluated", "examined"]

BATCH_SIZE = 500
AXIS = "data"


def _all_devices() -> jax.sharding.Mesh:
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


@dataclass(frozen=True)
class Devices:
    """All devices of all processes in a row, and how arrays that every process has whole are laid out over them."""

    mesh: jax.sharding.Mesh = field(default_factory=_all_devices)

    def everywhere(self, tree: Any) -> Any:
        """Arrays that every device has whole."""
        return _put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def by_example(self, tree: Any) -> Any:
        """Arrays shared out over devices along their first axis."""
        return _put(tree, NamedSharding(self.mesh, PartitionSpec(AXIS)))


def examined(objective: ImageObjective, variables: Variables, examples: Source, devices: Devices) -> dict[str, np.ndarray]:
    """Cross-entropy of each example and whether it is right: ``{"loss": [n], "accuracy": [n]}``, float64."""
    size, n = -(-BATCH_SIZE // devices.mesh.size) * devices.mesh.size, len(examples)
    found = [objective.evaluate(variables, devices.by_example(batch)) for batch in _padded(examples, size)]
    gathered = [multihost_utils.process_allgather(values, tiled=True) for values in found]
    return {key: np.concatenate([np.asarray(values[key], np.float64) for values in gathered])[:n] for key in ("loss", "accuracy")}


def evaluated(objective: ImageObjective, variables: Variables, examples: Source, devices: Devices) -> dict[str, float]:
    """Means of :func:`examined`."""
    return {key: float(values.mean()) for key, values in examined(objective, variables, examples, devices).items()}


def _padded(examples: Source, size: int) -> Iterator[Batch]:
    """Batches of one size, one after the other; the last repeats its last example."""
    for start in range(0, len(examples), size):
        yield examples.batch(np.minimum(np.arange(start, start + size), len(examples) - 1))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)
