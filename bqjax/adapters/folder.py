"""The folder of a model: shards, index, and the small files beside the weights, kept in a bqjax file and written back.

A Hugging Face folder has ``config.json`` and the tokenizer's files beside ``model.safetensors``, or beside shards and their index.
Whoever gets the one compressed file needs them too, so they stand in its metadata under ``folder``, as JSON:
``{"files": {name: bytes}, "content": "...", "shards": [...], "of": [...], "index": {...}}``. ``content`` is Base64 of one raw LZMA2
stream with the files end to end; ``shards`` are the names of the weights' files, ``of`` says for each leaf of the file which one it
was in (absent where there is one), ``index`` has the index's name and what it said besides the map.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from bqjax.adapters.checkpoints import Checkpoint
from bqjax.codec import FileInfo

__all__ = ["KEY", "ModelFolder", "folder_metadata", "kept_folder", "model_folder"]

KEY = "folder"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".npz", ".tflite", ".ot", ".pb")
_CARRIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".vocab", ".yaml")
_LICENCES = ("license", "licence", "notice", "copying", "use_policy")
_MOST_BYTES = 1 << 26  # of all files together, when they are read and when they are written back
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}]
_MOST_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """What a folder holds besides tensors.

    Attributes:
      files: those that loading the model takes, by name with ``/``.
      shards: names of the weights' files, in the order of their tensors.
      of: index into ``shards`` for each tensor, ascending.
      index_name: of the index file; None where there was none.
      index_metadata: what the index says besides which tensor is where and their total size.
      left: files that are not carried, with the reason.
    """

    files: Mapping[str, bytes]
    shards: Sequence[str]
    of: Sequence[int]
    index_name: str | None = None
    index_metadata: Mapping[str, Any] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_bytes(self) -> int:
        """Bytes of the carried files."""
        return sum(map(len, self.files.values()))

    @functools.cached_property  # a search for a size asks for it again and again
    def packed(self) -> str:
        """The carried files end to end, as Base64 of one LZMA2 stream."""
        data = b"".join(self.files.values())
        return base64.b64encode(lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS)).decode()


def model_folder(checkpoint: Checkpoint) -> ModelFolder | None:
    """What stands beside the weights of a checkpoint that was given as a folder or an index; None of a single file.

    Raises:
      OSError: a file cannot be read.
    """
    root, index = checkpoint.root, checkpoint.index
    if root is None:
        return None
    names = [tensor.path.relative_to(root).as_posix() for tensor in checkpoint.tensors.values()]
    shards = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(shards)}
    files, left = _beside(root, {*shards, *checkpoint.passed_over, "" if index is None else index.name})
    return ModelFolder(
        files=files,
        shards=shards,
        of=[place[name] for name in names],
        index_name=None if index is None else index.name,
        index_metadata=checkpoint.index_metadata,
        left=left,
    )


def _beside(root: Path, known: set[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Files to carry, and those left with the reason: of the folder, and of folders in it that hold no weights."""
    found: list[Path] = []
    left: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            inner = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            if any(p.name.endswith(_WEIGHTS) for p in inner):
                left[f"{path.name}/"] = "it holds weights of its own: compress it by itself"
                continue
            left |= {f"{path.name}/{p.name}/": "a folder in a folder" for p in inner if p.is_dir()}
            found += [p for p in inner if p.is_file()]
        elif path.is_file():
            found.append(path)
    files: dict[str, bytes] = {}
    room = _MOST_BYTES
    for path in found:
        name = path.relative_to(root).as_posix()
        if name in known or name.endswith(".bq.safetensors"):
            continue
        if reason := _why_not(path, room):
            left[name] = reason
        else:
            files[name] = path.read_bytes()
            room -= len(files[name])
    if (more := len(left) - _MOST_LISTED) > 0:
        left = dict(list(left.items())[:_MOST_LISTED]) | {f"{more} more files": "likewise"}
    return files, left


def _why_not(path: Path, room: int) -> str:
    """Why a file beside the weights is not carried; empty where it is."""
    name = path.name.lower()
    if name.endswith(".safetensors"):
        return "weights that the checkpoint does not name"
    if name.endswith((*_WEIGHTS, ".index.json")):
        return "of another format"
    if not (name.endswith(_CARRIED) or name.startswith(_LICENCES)):
        return "loading the model does not take it"
    return "" if path.stat().st_size <= room else f"the files beside the weights have more than {_MOST_BYTES:,} bytes"


def folder_metadata(folder: ModelFolder | None) -> dict[str, str]:
    """The entry for a bqjax file's metadata, whose leaves are in the order of the folder's tensors; empty of a single file."""
    if folder is None:
        return {}
    kept: dict[str, Any] = {"files": {name: len(data) for name, data in folder.files.items()}, "shards": list(folder.shards)}
    if folder.files:
        kept["content"] = folder.packed
    if len(folder.shards) > 1:
        kept["of"] = list(folder.of)
    if folder.index_name is not None:
        kept["index"] = {"name": folder.index_name, "metadata": dict(folder.index_metadata)}
    return {KEY: json.dumps(kept, separators=(",", ":"))}


def kept_folder(info: FileInfo) -> ModelFolder | None:
    """The folder that a bqjax file was made of; None where it was made of something else.

    Raises:
      ValueError: naming the file, where what it keeps cannot be: names outside of the folder, sizes that the content does not
        have, shards that do not go with the leaves.
    """
    if KEY not in info.metadata:
        return None
    try:
        return _parsed(json.loads(info.metadata[KEY]), len(info.leaves))
    except (ValueError, RecursionError, lzma.LZMAError) as error:
        raise ValueError(f"{info.path}: its metadata {KEY!r} are not those of a folder ({error})") from error


def _parsed(kept: Any, n_leaves: int) -> ModelFolder:
    if type(kept) is not dict or not {"files", "shards"} <= set(kept) <= {"files", "shards", "content", "of", "index"}:
        raise ValueError("other keys were expected")
    sizes, shards, of = kept["files"], kept["shards"], kept.get("of", [0] * n_leaves)
    index = kept.get("index", {"name": None, "metadata": {}})
    if type(sizes) is not dict or not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise ValueError("sizes of files must not be negative")
    if type(shards) is not list or not shards or not all(type(name) is str for name in shards) or len(set(shards)) < len(shards):
        raise ValueError("shards must be names, each once")
    fits = type(of) is list and len(of) == n_leaves and all(type(i) is int and 0 <= i < len(shards) for i in of)
    if not fits or any(a > b for a, b in pairwise(of)):
        raise ValueError("each leaf must be in one shard, in ascending order")
    if type(index) is not dict or set(index) != {"name", "metadata"} or type(index["metadata"]) is not dict:
        raise ValueError("the index must have a name and metadata")
    names = [*sizes, *shards, *([] if index["name"] is None else [index["name"]])]
    if wrong := [name for name in names if type(name) is not str or not _inside(name)]:
        raise ValueError(f"{wrong[0]!r} is no name within a folder")
    if len(set(names)) < len(names):
        raise ValueError("two files have one name")
    return ModelFolder(
        files=_unpacked(kept.get("content", ""), sizes),
        shards=shards,
        of=of,
        index_name=index["name"],
        index_metadata=index["metadata"],
    )


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = not any(ord(c) < 32 or c in '\\:*?"<>|' for c in name) and len(name.encode(errors="replace")) < 1000
    return plain and path.as_posix() == name and 1 <= len(path.parts) <= 3 and not any(p.startswith((".", "/")) for p in path.parts)


def _unpacked(content: Any, sizes: Mapping[str, int]) -> dict[str, bytes]:
    total = sum(sizes.values())
    if type(content) is not str or total > _MOST_BYTES:
        raise ValueError(f"the files would have {total} bytes")
    data = b""
    if content:
        try:
            packed = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ValueError(f"the files' content is no Base64 ({error})") from error
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
        data = unpacker.decompress(packed, max_length=total + 1)
    if len(data) != total:
        raise ValueError(f"the files' content has not the {total} bytes that their sizes say")
    ends = list(accumulate(sizes.values()))
    return {name: data[end - size : end] for (name, size), end in zip(sizes.items(), ends, strict=True)}
