"""Checkpoints of one safetensors file or of several (shards), given as the file, as the folder, or as the index of the folder;
and those of Orbax, given as the folder.

An index (``model.safetensors.index.json``, of Hugging Face's libraries) says in ``weight_map`` which file holds which tensor.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bqjax.adapters.orbax import find_orbax, open_orbax
from bqjax.adapters.safetensors import StoredTensor, open_file
from bqjax.core.recognize import index_of, recognize

__all__ = ["Checkpoint", "open_checkpoint", "read"]

_INDEX = ".safetensors.index.json"
_ENDING = ".safetensors"
_SHARD = re.compile(r"(?P<stem>.*?)-?(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_MOST_SHARDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors of one or several files, none of them read yet.

    Attributes:
      tensors: by name, in the order of the files.
      metadata: the strings of the files' ``__metadata__``; of a name that they disagree about, that of the first.
      files: those that hold tensors.
      passed_over: what else there is that was not taken, with the reason.
      root: the folder of safetensors files that was given, or that of the index; None of a single file, and of Orbax.
      index: file of the index in it, or None.
      index_metadata: what the index says besides which tensor is where and their total size.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]
    passed_over: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    index: Path | None = None
    index_metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(path.stat().st_size for path in self.files)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint by name.

    Args:
      path: as of :func:`open_checkpoint`.

    Raises:
      ValueError: as :func:`open_checkpoint`.

    Example:
      >>> import tempfile
      >>> from bqjax.adapters.safetensors import write_weights
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_weights(f"{folder}/model-00001-of-00002.safetensors", {"a": np.zeros(2, np.float32)})
      ...     write_weights(f"{folder}/model-00002-of-00002.safetensors", {"b": np.ones(1, np.float32)})
      ...     weights = read(folder)
      >>> {name: array.shape for name, array in weights.items()}
      {'a': (2,), 'b': (1,)}
    """
    return {name: tensor.read() for name, tensor in open_checkpoint(path).tensors.items()}


def open_checkpoint(path: str | os.PathLike[str], *others: str | os.PathLike[str]) -> Checkpoint:
    """The tensors of a checkpoint, without reading them.

    Args:
      path: a safetensors file; an index; a folder with an index, with numbered shards, or with other safetensors files whose
        tensors have names of their own; or a checkpoint of Orbax, a step of one, or the folder of its steps, of which the last
        counts (see :mod:`bqjax.adapters.orbax`).
      others: further safetensors files of the same checkpoint, where it is given file by file.

    Raises:
      ValueError: nothing is there, or something else (then with what it is); shards or tensors are missing, each named; two files
        hold tensors of one name; a folder with several indexes; a damaged file.
      ImportError: a checkpoint of Orbax, which is not installed.
    """
    path = Path(path)
    if others:
        return _listed_files([path, *map(Path, others)])
    if path.is_dir():
        return _folder(path)
    if path.is_file() and (path.name.endswith(_INDEX) or _is_index(path)):
        return _indexed(path, {})
    tensors, metadata = open_file(path)
    return Checkpoint(tensors=tensors, metadata=metadata, files=(path,))


def _listed_files(files: list[Path]) -> Checkpoint:
    """The checkpoint of files that were named one by one."""
    for path in files:
        if path.is_dir() or path.name.endswith(_INDEX):
            what = "a folder" if path.is_dir() else "an index"
            raise ValueError(f"{path} is {what}, which stands for all of its files: name nothing beside it")
    if twice := [path for i, path in enumerate(files) if path.resolve() in [other.resolve() for other in files[:i]]]:
        raise ValueError(f"{twice[0]} is named twice")
    _all_shards(files[0].parent, files)
    return _joined(files, {})


def _is_index(path: Path) -> bool:
    kind = recognize(path)
    return kind is not None and kind.name == "index"


def _folder(folder: Path) -> Checkpoint:
    found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not any(path.name.endswith(_ENDING) for path in found) and (orbax := find_orbax(folder)) is not None:
        tensors, passed = open_orbax(orbax)
        written = sorted(path for path in orbax.rglob("*") if path.is_file())
        return Checkpoint(tensors=tensors, metadata={}, files=tuple(written), passed_over=passed)
    indexes = [path for path in found if path.name.endswith(_INDEX)]
    if len(indexes) > 1:
        raise ValueError(f"{folder} holds the indexes of several checkpoints, {_listed(indexes)}: name one of them")
    files, passed = [], {}
    for path in found:
        if path.name.endswith(_ENDING):
            kind = recognize(path)
            if kind is not None and kind.name == "bqjax":
                passed[path.name] = "a bqjax file"
            else:
                files.append(path)
    if indexes:
        opened = _indexed(indexes[0], passed)
        others = {path.name: "the index does not name it" for path in files if path not in opened.files}
        return replace(opened, passed_over={**others, **opened.passed_over})
    if not files:
        raise ValueError(f"{folder} holds no .safetensors file{_instead(folder, found)}")
    _all_shards(folder, files)
    return replace(_joined(files, passed), root=folder)


def _instead(folder: Path, found: list[Path]) -> str:
    for path in found[:50]:
        kind = recognize(path)
        if kind is not None and kind.name not in ("text", "json", "empty"):
            return f"; {path.name} is {kind.what}: {kind.remedy}"
    return ""


def _listed(paths: Iterable[Path | str], most: int = 5) -> str:
    names = [path if isinstance(path, str) else path.name for path in paths]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _all_shards(folder: Path, files: list[Path]) -> None:
    """Raises ``ValueError`` where numbered shards are missing."""
    names = {path.name for path in files}
    for stem, count in dict.fromkeys((m["stem"], m["count"]) for name in names if (m := _SHARD.fullmatch(name))):
        join = next(name[len(stem)] == "-" for name in names if name.startswith(stem) and name.endswith(f"-of-{count}{_ENDING}"))
        expected = [f"{stem}{'-' * join}{i:05}-of-{count}{_ENDING}" for i in range(1, min(int(count), _MOST_SHARDS) + 1)]
        if missing := [name for name in expected if name not in names]:
            raise ValueError(f"{folder} lacks {len(missing)} of {int(count)} shards: {_listed(missing)}")


def _joined(files: list[Path], passed: dict[str, str]) -> Checkpoint:
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for path in files:
        more, said = open_file(path)
        if both := [name for name in more if name in tensors]:
            other = tensors[both[0]].path.name
            raise ValueError(
                f"{other} and {path.name} in {path.parent} both hold a tensor {both[0]!r}: "
                "they are several checkpoints, compress each by itself"
            )
        tensors |= more
        _merge(metadata, said, path, passed)
    return Checkpoint(tensors=tensors, metadata=metadata, files=tuple(files), passed_over=passed)


def _merge(metadata: dict[str, str], said: Mapping[str, str], path: Path, passed: dict[str, str]) -> None:
    for key, value in said.items():
        if metadata.setdefault(key, value) != value:
            passed[f"__metadata__ {key!r} of {path.name}"] = "another file says something else"


def _indexed(index: Path, passed: dict[str, str]) -> Checkpoint:
    text = index.read_text(encoding="utf-8", errors="replace")
    shards = index_of(text)
    if shards is None:
        kind = recognize(index)
        looks = f", it is {kind.what}: {kind.remedy}" if kind is not None and kind.name not in ("index", "json", "text") else ""
        raise ValueError(f"{index} is not an index of safetensors files (JSON with a weight_map)" + looks)
    names = sorted(set(shards.values()))
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"{index} names files outside of its folder: {_listed(outside)}")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index} names {len(names)} shards, of which {len(missing)} are missing: {_listed(missing)}")
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for name in names:
        path = index.parent / name
        held, said = open_file(path)
        wanted = {tensor for tensor, shard in shards.items() if shard == name}
        if lacking := sorted(wanted - held.keys()):
            raise ValueError(f"{path} lacks {len(lacking)} tensors that {index.name} says it holds: {_listed(lacking)}")
        tensors |= {tensor: held[tensor] for tensor in held if tensor in wanted}
        passed |= {tensor: f"in {name}, but not in its index" for tensor in held if tensor not in wanted}
        _merge(metadata, said, path, passed)
    said = json.loads(text).get("metadata")
    return Checkpoint(
        tensors=tensors,
        metadata=metadata,
        files=tuple(index.parent / name for name in names),
        passed_over=passed,
        root=index.parent,
        index=index,
        index_metadata={key: value for key, value in said.items() if key != "total_size"} if type(said) is dict else {},
    )
