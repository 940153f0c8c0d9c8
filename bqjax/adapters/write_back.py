"""A bqjax file back to weights as their library loads them: one safetensors file, or the folder that it was made of."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bqjax import codec
from bqjax.adapters.folder import ModelFolder, kept_folder
from bqjax.adapters.origin import origin
from bqjax.adapters.safetensors import TensorType, stream_weights
from bqjax.core.files import atomic_write
from bqjax.core.leaves import decode

__all__ = ["DTYPES", "WrittenBack", "write_file", "write_folder"]

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_CAST = ("F64", "F32", "F16", "BF16")
_CONFIG = "config.json"


class WrittenBack(NamedTuple):
    """What was written.

    Attributes:
      tensors: number of them.
      nbytes: of all files.
      files: their names, within the folder.
      notes: what else there is to say.
    """

    tensors: int
    nbytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def write_file(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, dtype: str | None = None, force: bool = False
) -> WrittenBack:
    """Decodes a bqjax file to one safetensors file, tensor by tensor.

    Args:
      source: the bqjax file.
      out: the file to write.
      dtype: of all floating-point tensors of 16 bits or more, one of :data:`DTYPES`; None leaves each what it was.
      force: overwrite an existing file.

    Raises:
      ValueError: the file is damaged; ``out`` exists and ``force`` is False; an unknown dtype, or one that a value
        is too large for.
    """
    out, info = Path(out), codec.inspect(source)
    types, metadata = origin(info)
    stream_weights(out, _cast_types(types, dtype), _leaves(info.path, types, dtype), force=force, metadata=metadata)
    kept = kept_folder(info)
    notes = () if kept is None or not kept.files else (f"left out: {', '.join(kept.files)}; they come with a folder as --out",)
    return WrittenBack(len(types), out.stat().st_size, (out.name,), notes)


def write_folder(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, dtype: str | None = None, force: bool = False
) -> WrittenBack:
    """Decodes a bqjax file to the folder that it was made of: shards and their index, configuration and tokenizer.

    The folder appears whole or, where it was there already, file by file. A file made of one safetensors file becomes
    ``model.safetensors``.

    Args:
      source: the bqjax file.
      out: the folder.
      dtype: as of :func:`write_file`; ``config.json`` then says so, too, where it names one.
      force: write into a folder that is not empty; other files in it stay.

    Raises:
      ValueError: as :func:`write_file`, or ``out`` is a file.
    """
    out, info = Path(out), codec.inspect(source)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} exists and is not empty: pass force=True (--force on the command line) to write into it")
    types, metadata = origin(info)
    kept = kept_folder(info) or ModelFolder(files={}, shards=["model.safetensors"], of=[0] * len(types))
    new = _cast_types(types, dtype)
    files, notes = _with_dtype(kept.files, dtype)
    leaves = _leaves(info.path, types, dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bqjax-", dir=out.parent) as scratch:
        made = Path(scratch) / "folder"
        for shard, names in _by_shard(kept, list(types)).items():
            stream_weights(made / shard, {n: new[n] for n in names}, islice(leaves, len(names)), metadata=metadata)
        if kept.index_name is not None:
            files[kept.index_name] = _index(kept, new)
        for name, content in files.items():
            with atomic_write(made / name) as file:
                file.write(content)
        found = sorted(path for path in made.rglob("*") if path.is_file())
        nbytes, written = sum(path.stat().st_size for path in found), tuple(path.relative_to(made).as_posix() for path in found)
        _move(made, out, written)
    return WrittenBack(len(types), nbytes, written, notes)


def _move(made: Path, out: Path, names: Iterable[str]) -> None:
    if not out.exists():
        made.rename(out)
        return
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).replace(out / name)


def _by_shard(kept: ModelFolder, names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {shard: [] for shard in kept.shards}
    for name, i in zip(names, kept.of, strict=True):
        found[kept.shards[i]].append(name)
    return found


def _index(kept: ModelFolder, types: Mapping[str, TensorType]) -> bytes:
    total = sum(kind.nbytes for kind in types.values())
    shards = {name: kept.shards[i] for name, i in zip(types, kept.of, strict=True)}
    about = {"metadata": {"total_size": total, **kept.index_metadata}, "weight_map": dict(sorted(shards.items()))}
    return json.dumps(about, indent=2).encode() + b"\n"


def _cast_types(types: Mapping[str, TensorType], dtype: str | None) -> dict[str, TensorType]:
    if dtype is None:
        return dict(types)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown: choose from {', '.join(DTYPES)}")
    return {name: TensorType.of(name, kind.shape, DTYPES[dtype]) if kind.stored in _CAST else kind for name, kind in types.items()}


def _leaves(source: Path, types: Mapping[str, TensorType], dtype: str | None) -> Iterator[tuple[str, np.ndarray]]:
    for name, leaf in codec.read_leaves(source):
        array = np.asarray(decode(leaf))
        if dtype is not None and types[name].stored in _CAST:
            with np.errstate(over="ignore"):
                cast = array.astype(DTYPES[dtype])
            if over := int(np.count_nonzero(np.isfinite(array) & ~np.isfinite(cast))):
                raise ValueError(f"{name!r} has {over} values that {dtype} cannot hold: take bfloat16 or float32")
            array = cast
        yield name, array


def _with_dtype(files: Mapping[str, bytes], dtype: str | None) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files, with the dtype that ``config.json`` names changed where another is asked for."""
    found = dict(files)
    if dtype is None or _CONFIG not in found:
        return found, ()
    try:
        config: Any = json.loads(found[_CONFIG])
    except (ValueError, RecursionError):
        return found, (f"{_CONFIG} is no JSON, and stays what it was",)
    named = [key for key in ("dtype", "torch_dtype") if type(config) is dict and type(config.get(key)) is str]
    if not named or all(config[key] == dtype for key in named):
        return found, ()
    found[_CONFIG] = json.dumps(config | dict.fromkeys(named, dtype), indent=2).encode() + b"\n"
    return found, (f"{_CONFIG} says {dtype} now",)
