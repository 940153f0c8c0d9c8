"""Plain safetensors files: their tensors whole or one by one, with every dtype that the format has, and their metadata.

Tensors of a dtype that NumPy has no array for (packed 4- and 6-bit floats, formats still to come) are arrays of their bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bqjax.core.files import atomic_write
from bqjax.core.recognize import refuse_other

__all__ = [
    "StoredTensor",
    "TensorType",
    "WeightsFile",
    "open_file",
    "open_weights",
    "read_weights",
    "stream_weights",
    "write_weights",
]

# Names of the safetensors format -> dtype. https://huggingface.co/docs/safetensors
_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Their entries stand packed in a file, which those of an array do not: bits of an entry, and the dtype that a message names.
_PACKED = {
    "F4": (4, np.dtype(ml_dtypes.float4_e2m1fn)),
    "F6_E2M3": (6, np.dtype(ml_dtypes.float6_e2m3fn)),
    "F6_E3M2": (6, np.dtype(ml_dtypes.float6_e3m2fn)),
}
_UNKNOWN = (0, np.dtype("V1"))
_BYTES = np.dtype(np.uint8)
_MAX_HEADER = 100_000_000  # bytes: what the format's own library accepts
_MAX_SIZE = 1 << 48  # entries or bytes


class TensorType(NamedTuple):
    """What a file says of a tensor.

    Attributes:
      stored: name of its dtype in the format, as ``"BF16"``.
      shape: as stated.
      nbytes: bytes of its data.
    """

    stored: str
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], dtype: np.dtype) -> TensorType:
        """That of an array.

        Raises:
          ValueError: naming the tensor, where safetensors cannot hold its dtype.
        """
        stored = _NAMES.get(dtype.newbyteorder("="))
        if stored is None:
            raise ValueError(f"{name!r} has dtype {dtype}, which safetensors cannot hold")
        return cls(stored, tuple(map(int, shape)), math.prod(shape) * dtype.itemsize)

    @property
    def packed(self) -> bool:
        """Whether no array has this dtype, so that the tensor is read and written as its bytes."""
        return self.stored not in _DTYPES


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, which :meth:`read` brings into memory.

    Attributes:
      path: the file.
      shape: of the tensor as it is read: of a packed one ``[bytes]``.
      dtype: of the tensor; void where the file's is not known here.
      offset: of its first byte in the file.
      type: what the file says of it.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    type: TensorType

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The tensor as an array of its own; of a packed one its bytes.

        Raises:
          ValueError: the file was cut short after it was opened.
          OSError: it cannot be read.
        """
        data = np.empty(self.type.nbytes, np.uint8)
        with self.path.open("rb", buffering=0) as file:  # half the time of np.fromfile for small tensors
            file.seek(self.offset)
            left = data.data
            while left:  # one call reads at most 2 GB
                read = file.readinto(left)
                if not read:
                    raise ValueError(f"{self.path} was cut short while it was read")
                left = left[read:]
        return data if self.type.packed else data.view(self.dtype).reshape(self.shape)


class WeightsFile(NamedTuple):
    """What is in a file, nothing of it read yet.

    Attributes:
      tensors: by name, in the order of the file.
      metadata: the strings of ``__metadata__`` by name.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name; those of a dtype that no array has as their bytes.

    Raises:
      ValueError: the file is missing, is not safetensors (then with what it is), or is damaged.
    """
    return {name: tensor.read() for name, tensor in open_file(path).tensors.items()}


def open_weights(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, in the order of the file, without reading them.

    Raises:
      ValueError: as :func:`read_weights`.
    """
    return open_file(path).tensors


def open_file(path: str | os.PathLike[str]) -> WeightsFile:
    """Tensors and metadata of a safetensors file, without reading the tensors.

    Raises:
      ValueError: as :func:`read_weights`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is a folder, not a file" if path.is_dir() else f"no file {path}")
    refuse_other(path, "a safetensors file of weights", "safetensors")
    try:
        return _parse(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    for name in found:
        name.encode()  # half of a character, which no text may hold, is refused
    return found


def _parse(path: Path) -> WeightsFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"a header of {length} bytes does not fit into a file of {size} (truncated?)")
        try:
            entries = json.loads(file.read(length).decode(), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its header cannot be read ({error})") from error
    if type(entries) is not dict:
        raise ValueError("its header is no JSON object")
    metadata = entries.pop("__metadata__", None) or {}
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise ValueError("its __metadata__ are not strings by name")
    if metadata.get("format") == "bqjax" and set(entries) == {"data", "tree"}:
        raise ValueError("it is a bqjax file, which is compressed already: `bqjax decompress` restores its weights")
    found = {name: _entry(name, entry) for name, entry in entries.items()}
    tensors, end = {}, 0
    for name, (start, kind) in sorted(found.items(), key=lambda item: (item[1][0], item[1][1].nbytes)):
        if start != end:
            raise ValueError(f"tensor {name!r} begins at byte {start} of the data, the one before ends at {end}")
        end += kind.nbytes
        dtype = _PACKED.get(kind.stored, _UNKNOWN)[1] if kind.packed else _DTYPES[kind.stored]
        shape = (kind.nbytes,) if kind.packed else kind.shape
        tensors[name] = StoredTensor(path, shape, dtype, 8 + length + start, kind)
    if 8 + length + end != size:
        raise ValueError(f"its header describes {8 + length + end} bytes, it has {size}")
    return WeightsFile(tensors, metadata)


def _integers(value: Any) -> bool:
    return type(value) is list and all(type(x) is int and 0 <= x <= _MAX_SIZE for x in value)


def _entry(name: str, entry: Any) -> tuple[int, TensorType]:
    """First byte and type of a tensor, checked by themselves."""
    if type(entry) is not dict or not {"dtype", "shape", "data_offsets"} <= set(entry) or type(entry["dtype"]) is not str:
        raise ValueError(f"tensor {name!r} has no dtype, shape or data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _integers(shape) or not _integers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has a shape or data_offsets that cannot be")
    kind = TensorType(entry["dtype"], tuple(shape), offsets[1] - offsets[0])
    count = math.prod(shape)
    bits = _PACKED.get(kind.stored, _UNKNOWN)[0] if kind.packed else 8 * _DTYPES[kind.stored].itemsize
    if bits and -(-count * bits // 8) != kind.nbytes:  # of a dtype that is not known, the offsets are believed
        raise ValueError(f"tensor {name!r} of shape {shape} and {kind.stored} cannot have {kind.nbytes} bytes")
    return offsets[0], kind


def write_weights(
    path: str | os.PathLike[str], weights: Mapping[str, Any], *, force: bool = False, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays by name as a safetensors file, atomically.

    Args:
      path: the file.
      weights: arrays by name.
      force: overwrite an existing file.
      metadata: strings by name for ``__metadata__``; some loaders ask for ``{"format": "pt"}``.

    Raises:
      ValueError: the file exists and ``force`` is False; a dtype that safetensors cannot hold.
    """
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    # As other writers do: wide dtypes first, so that every tensor is aligned.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    types = {name: TensorType.of(name, arrays[name].shape, arrays[name].dtype) for name in order}
    stream_weights(path, types, ((name, arrays[name]) for name in order), force=force, metadata=metadata)


def stream_weights(
    path: str | os.PathLike[str],
    types: Mapping[str, TensorType],
    arrays: Iterable[tuple[str, Any]],
    *,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays by name as a safetensors file, atomically, one by one: memory holds one at a time.

    Args:
      path: the file.
      types: what the file states of each array before the first.
      arrays: names and arrays, in the order of ``types``; of a packed type the bytes.
      force: overwrite an existing file.
      metadata: strings by name for ``__metadata__``.

    Raises:
      ValueError: the file exists and ``force`` is False; ``arrays`` are not what ``types`` say.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, kind in types.items():
        start, end = end, end + kind.nbytes
        entries[name] = {"dtype": kind.stored, "shape": list(kind.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # so that the data are aligned, as other writers do
    with atomic_write(path, force=force) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        expected = iter(types.items())
        for name, leaf in arrays:
            array = np.asarray(leaf)
            announced = next(expected, None)
            if announced is None or announced[0] != name or not _is_of(array, announced[1]):
                raise ValueError(f"{name!r} of shape {array.shape} and {array.dtype} is not what was announced")
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if (rest := next(expected, None)) is not None:
            raise ValueError(f"{rest[0]!r} was announced and is not there")


def _is_of(array: np.ndarray, kind: TensorType) -> bool:
    if kind.packed:
        return array.dtype == _BYTES and array.nbytes == kind.nbytes
    return (array.dtype.newbyteorder("="), array.shape) == (_DTYPES[kind.stored], kind.shape)
