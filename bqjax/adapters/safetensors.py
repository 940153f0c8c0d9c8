"""Plain safetensors weights as a flat dict of arrays, whole or one by one, with the dtypes that NumPy itself lacks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from bqjax.core.files import atomic_write

__all__ = ["StoredTensor", "open_weights", "read_weights", "stream_weights", "write_weights"]

# Names of the safetensors format -> dtype. https://huggingface.co/docs/safetensors
_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name.

    Raises:
      ValueError: the file is missing, is not safetensors, is damaged, or has a dtype that is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    weights = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: tensor {name!r} has dtype {tensor['dtype']}, which is not supported")
        weights[name] = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return weights


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, which :meth:`read` brings into memory.

    Attributes:
      path: the file.
      shape: of the tensor.
      dtype: of the tensor.
      offset: of its first byte in the file.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The tensor as an array of its own.

        Raises:
          ValueError: the file was cut short after it was opened.
          OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = np.fromfile(file, np.uint8, self.size * self.dtype.itemsize)
        if data.size != self.size * self.dtype.itemsize:
            raise ValueError(f"{self.path} was cut short while it was read")
        return data.view(self.dtype).reshape(self.shape)


def open_weights(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, in the order of the file, without reading them.

    Raises:
      ValueError: as :func:`read_weights`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="np"):  # checks names, shapes and offsets against the file's size
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: tensor {name!r} has dtype {entry['dtype']}, which is not supported")
        start = 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor(path, tuple(entry["shape"]), _DTYPES[entry["dtype"]], start)
    return tensors


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, Any], *, force: bool = False) -> None:
    """Writes arrays by name as a safetensors file, atomically.

    Raises:
      ValueError: the file exists and ``force`` is False; a dtype that safetensors cannot hold.
    """
    tensors = {}
    for name, array in weights.items():
        tensors[name] = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes 0-d arrays 1-d
        if tensors[name].dtype not in _DTYPES.values():
            raise ValueError(f"{name!r} has dtype {tensors[name].dtype}, which safetensors cannot hold")
    with atomic_write(path, force=force) as file:
        file.write(safetensors.numpy.save(tensors))


def stream_weights(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[tuple[str, Any]],
    *,
    force: bool = False,
) -> None:
    """Writes arrays by name as a safetensors file, atomically, one by one: memory holds one at a time.

    Args:
      path: the file.
      shapes: shape and dtype of each array, which the file states before the first.
      arrays: names and arrays, in the order of ``shapes``.
      force: overwrite an existing file.

    Raises:
      ValueError: the file exists and ``force`` is False; a dtype that safetensors cannot hold; ``arrays`` are not what
        ``shapes`` says.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    entries, end = {}, 0
    for name, (shape, dtype) in shapes.items():
        if dtype not in names:
            raise ValueError(f"{name!r} has dtype {dtype}, which safetensors cannot hold")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # so that the data are aligned, as other writers do
    with atomic_write(path, force=force) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        expected = iter(shapes.items())
        for name, leaf in arrays:
            array = np.asarray(leaf)
            if next(expected, None) != (name, (array.shape, array.dtype)):
                raise ValueError(f"{name!r} of shape {array.shape} and {array.dtype} is not what was announced")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if (rest := next(expected, None)) is not None:
            raise ValueError(f"{rest[0]!r} was announced and is not there")
