"""Checkpoints of Orbax: arrays by name, read one at a time. Orbax is imported where one is opened.

Names are those of :func:`bqjax.core.tree.named_leaves` (``layers/0/kernel``), so that ``nnx_with_params`` and ``nnx_load`` of
``bqjax.adapters.flax`` take them. Where every name ends in ``/value``, as of an ``nnx.State`` that was saved as it was, that is
left out. Nothing is unpickled.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bqjax.adapters.safetensors import StoredTensor, TensorType

__all__ = ["OrbaxTensor", "find_orbax", "open_orbax"]

_MARK = "_METADATA"  # of a folder with a pytree's arrays
_STEP = "_CHECKPOINT_METADATA"
_VALUE = "/value"


@dataclass(frozen=True)
class OrbaxTensor(StoredTensor):
    """An array of a checkpoint of Orbax, which :meth:`read` brings into memory; ``path`` is the folder.

    Attributes:
      place: of the array among the checkpoint's leaves.
    """

    place: int = 0

    def read(self) -> np.ndarray:
        """The array.

        Raises:
          ValueError: it cannot be read, or is not what the checkpoint's metadata say.
        """
        import orbax.checkpoint as ocp  # type: ignore[import-untyped]

        _, structure = _tree(self.path)
        count = structure.num_leaves
        items: list[Any] = [ocp.PLACEHOLDER] * count
        items[self.place] = np.zeros(0)
        how = [ocp.RestoreArgs(restore_type=np.ndarray)] * count
        args = ocp.args.PyTreeRestore(item=jax.tree.unflatten(structure, items), restore_args=jax.tree.unflatten(structure, how))
        try:
            found = jax.tree.leaves(_checkpointer().restore(self.path.absolute(), args=args))[self.place]
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise ValueError(f"{self.path}: array {self.place} of the checkpoint cannot be read ({_line(error)})") from error
        array = np.asarray(found)
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise ValueError(f"{self.path}: an array is {array.dtype}{array.shape}, its metadata say {self.dtype}{self.shape}")
        return array


def find_orbax(folder: Path) -> Path | None:
    """The folder with the arrays of a checkpoint: the folder itself, the one item of a step, or that of the last step.

    Raises:
      ValueError: there are several items; each is named.
    """
    if (folder / _MARK).is_file():
        return folder
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    items = [path for path in inner if (path / _MARK).is_file()]
    if len(items) > 1:
        raise ValueError(f"{folder} is a checkpoint of Orbax with the items {', '.join(p.name for p in items)}: name one of them")
    if items:
        return items[0]
    steps = [path for path in inner if path.name.rpartition("_")[2].isdecimal() and (path / _STEP).is_file()]
    return find_orbax(max(steps, key=lambda path: int(path.name.rpartition("_")[2]))) if steps else None


def open_orbax(folder: str | os.PathLike[str]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The arrays of a checkpoint, without reading them.

    Args:
      folder: with the arrays of a pytree, see :func:`find_orbax`.

    Returns:
      Arrays by name, and what was not taken, with the reason.

    Raises:
      ValueError: the checkpoint cannot be read, or two arrays have one name.
      ImportError: Orbax is not installed.
    """
    folder = Path(folder)
    leaves, _ = _tree(folder)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if names and all(name.endswith(_VALUE) for name in names):
        names = [name.removesuffix(_VALUE) for name in names]
    tensors: dict[str, StoredTensor] = {}
    passed: dict[str, str] = {}
    for i, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True)):
        if name in tensors:
            raise ValueError(f"{folder}: two arrays are named {name!r}")
        if getattr(leaf, "dtype", None) is None or getattr(leaf, "shape", None) is None:
            passed[name] = f"{type(leaf).__name__.removesuffix('Metadata').lower()}, no array"
            continue
        try:
            kind = TensorType.of(name, tuple(leaf.shape), np.dtype(leaf.dtype))
        except (ValueError, TypeError):
            passed[name] = f"safetensors cannot hold {leaf.dtype}"
            continue
        tensors[name] = OrbaxTensor(folder, kind.shape, np.dtype(leaf.dtype), 0, kind, place=i)
    return tensors, passed


def _checkpointer() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("a checkpoint of Orbax takes Orbax: pip install orbax-checkpoint") from error
    return ocp.PyTreeCheckpointer()


def _tree(folder: Path) -> tuple[list[tuple[Any, Any]], Any]:
    """What the checkpoint says of each of its leaves, with their paths; and its structure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _checkpointer().metadata(folder.absolute())
        tree = found.item_metadata.tree
    except (ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder} is no checkpoint of Orbax that can be read ({_line(error)})") from error
    return jax.tree_util.tree_flatten_with_path(tree)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
