"""Checkpoints with Orbax: written in the background, the best and the last are kept, and only those of the same config read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint.experimental import v1 as ocp  # type: ignore[import-untyped]

from bqjax.core.files import atomic_write

__all__ = ["Checkpoints", "checked_config"]


def checked_config(folder: Path, config: Any) -> None:
    """Writes a run's config beside its checkpoints, or compares with the one that is there.

    Args:
      folder: of the run; it is made where it does not exist.
      config: a dataclass of plain values and dataclasses. A plain field that the file lacks counts as its default there.

    Raises:
      ValueError: the folder belongs to a run of another config; the message names the fields.
    """
    path, new = folder / "config.json", _flat(json.loads(json.dumps(dataclasses.asdict(config))))
    if not path.is_file():
        with atomic_write(path, force=True) as file:
            file.write(json.dumps(new, indent=1).encode())
        return
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; name another folder") from error
    # A field that a newer version brought: its default is what the older one did.
    # A whole dataclass that is not there (no quantizer, and now one) is another config, though.
    there = {name.rpartition(".")[0] for name in old} | {""}
    old |= {name: value for name, value in _defaults(config).items() if name not in old and name.rpartition(".")[0] in there}
    differing = [
        f"{key} is {old.get(key)!r} there and {new.get(key)!r} now" for key in {**old, **new} if old.get(key) != new.get(key)
    ]
    if differing:
        raise ValueError(f"{folder} holds checkpoints of another config: {'; '.join(differing)}. Name another folder to start anew")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """Defaults of plain fields, also of those of dataclasses within, by the names that they have in the file."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            out |= _defaults(value, f"{name}.")
        elif isinstance(field.default, bool | int | float | str | tuple | None):
            out[name] = list(field.default) if isinstance(field.default, tuple) else field.default
    return out


class Checkpoints:
    """The checkpoints of one phase of a run, one after each epoch.

    A checkpoint that cannot be written (a full disk) gives a warning: training goes on, and earlier ones stay whole, as
    Orbax writes each into a folder of its own that gets its name when it is complete.

    Args:
      folder: of the checkpoints; made where it does not exist.
      metric: the metric whose largest value is the best; ``-NAME`` is minus the metric ``NAME``, whose smallest value is.
    """

    def __init__(self, folder: Path, metric: str):
        self.folder, self.metric = folder.absolute(), metric
        self._pending: tuple[int, Any] | None = None
        self._open()

    def _open(self) -> None:
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(1), policies.BestN(get_metric_fn=lambda metrics: metrics[self.metric], n=1)]
            ),
            cleanup_tmp_directories=True,  # what a killed run left behind
        )

    def save(self, epoch: int, state: Any, metrics: Mapping[str, float]) -> None:
        """Starts to write a pytree of arrays as the state after ``epoch`` epochs; waits for the one before."""
        self.wait()
        try:
            # On the host, because the next step takes over the buffers of the state.
            arrays = jax.tree.map(np.asarray, _by_name(state))
            self._pending = (epoch, self._checkpointer.save_async(epoch, arrays, force=True, metrics=self._ranked(metrics)))
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(epoch, error)

    def _ranked(self, metrics: Mapping[str, float]) -> dict[str, float]:
        name = self.metric.removeprefix("-")
        return {self.metric: metrics[name] if name == self.metric else -metrics[name]}

    def wait(self) -> None:
        """Returns when everything is on disk, or known not to be."""
        if self._pending is None:
            return
        epoch, response = self._pending
        self._pending = None
        try:
            response.result()
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore reports a full disk as a ValueError
            self._failed(epoch, error)

    def _failed(self, epoch: int, error: Exception) -> None:
        # The old one may be in any state; what it left of this checkpoint is removed by the new one.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._checkpointer.close()
        shutil.rmtree(self.folder / f"{epoch}", ignore_errors=True)
        self._open()
        whole = self.epochs()
        left = f"the last whole one is of epoch {whole[-1]}" if whole else "there is no earlier one"
        warnings.warn(f"the checkpoint of epoch {epoch} was not written: {error}; training goes on, {left}", stacklevel=3)

    def epochs(self) -> list[int]:
        """After how many epochs the checkpoints are that exist, in ascending order."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def best(self) -> int | None:
        """The epoch of the best checkpoint; the earliest of equals."""
        found = [c for c in self._checkpointer.checkpoints if c.metrics]
        return max(found, key=lambda c: (c.metrics[self.metric], -c.step)).step if found else None

    def restore(self, like: Any, epoch: int | None = None) -> tuple[int, Any] | None:
        """The last state, or that after ``epoch`` epochs, as NumPy arrays; None where there is none.

        Args:
          like: a pytree of arrays of the same structure.
          epoch: which one.

        Raises:
          ValueError: the checkpoint has other names or shapes than ``like``.
        """
        self.wait()
        if not self.epochs():
            return None
        epoch = self.epochs()[-1] if epoch is None else epoch
        expected = _by_name(like)
        try:
            loaded = self._checkpointer.load(epoch, {k: np.zeros(np.shape(v), v.dtype) for k, v in expected.items()})
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: the checkpoint of epoch {epoch} does not fit this training, or is of another version: name "
                "another folder to start anew"
            ) from error
        for name, leaf in expected.items():
            if np.shape(loaded[name]) != np.shape(leaf):
                raise ValueError(f"{self.folder}: {name!r} has shape {np.shape(loaded[name])}, the network {np.shape(leaf)}")
        return epoch, jax.tree.unflatten(jax.tree.structure(like), [np.asarray(loaded[name]) for name in expected])

    def close(self) -> None:
        """Waits for what is being written, and ends the threads."""
        self.wait()
        self._checkpointer.close()


def _by_name(state: Any) -> dict[str, Any]:
    # The arrays within compressed leaves, too, which bqjax.core.tree.named_leaves takes as one.
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/").replace("/", "."): leaf for path, leaf in leaves}
