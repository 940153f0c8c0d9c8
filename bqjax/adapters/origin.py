"""What a bqjax file keeps of the safetensors file that it was made of, so that ``bqjax decompress`` writes that again.

It stands in the file's metadata as JSON under ``safetensors``: ``{"metadata": {...}, "packed": {name: [dtype, shape]}}``, where
``metadata`` is ``__metadata__`` and ``packed`` are the tensors of a dtype that no array has, whose bytes are a leaf of U8 (the
leaf's name -> dtype of the format, shape). Either is left out where it is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bqjax.adapters.safetensors import StoredTensor, TensorType
from bqjax.codec import FileInfo
from bqjax.codec.structure import DTYPES

__all__ = ["KEY", "Origin", "described", "origin", "origin_metadata"]

KEY = "safetensors"


class Origin(NamedTuple):
    """What :func:`bqjax.adapters.safetensors.stream_weights` needs to write the weights of a bqjax file.

    Attributes:
      types: of every tensor by name, in the order of the file's leaves.
      metadata: the strings of ``__metadata__`` by name.
    """

    types: dict[str, TensorType]
    metadata: dict[str, str]


def origin_metadata(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The entry for a bqjax file's metadata; empty where there is nothing to keep."""
    packed = {name: [tensor.type.stored, list(tensor.type.shape)] for name, tensor in tensors.items() if tensor.type.packed}
    kept = ({"metadata": dict(metadata)} if metadata else {}) | ({"packed": packed} if packed else {})
    return {KEY: json.dumps(kept, separators=(",", ":"))} if kept else {}


def origin(info: FileInfo) -> Origin:
    """Types and metadata of the weights that a file decodes to.

    Raises:
      ValueError: naming the file, where what it keeps cannot be, or a leaf has a dtype that safetensors cannot hold.
    """
    metadata, packed = _kept(info)
    types = {}
    for leaf in info.leaves:
        if leaf.name not in packed:
            types[leaf.name] = TensorType.of(leaf.name, leaf.shape, DTYPES[leaf.dtype])
            continue
        if (leaf.kind, leaf.dtype, len(leaf.shape)) != ("array", np.dtype(np.uint8).name, 1):
            raise ValueError(f"{info.path}: leaf {leaf.name!r} is to be bytes of {packed[leaf.name][0]!r}, and is none")
        stored, shape = packed.pop(leaf.name)
        types[leaf.name] = TensorType(stored, tuple(shape), leaf.size)
    if packed:
        raise ValueError(f"{info.path}: its metadata describe {next(iter(packed))!r}, which is no leaf")
    return Origin(types, metadata)


def described(info: FileInfo) -> dict[str, str]:
    """The file's metadata as ``bqjax inspect`` shows them."""
    metadata, packed = _kept(info)
    shown = {name: value for name, value in info.metadata.items() if name != KEY}
    shown |= {f"__metadata__ {name}": value for name, value in metadata.items()}
    return shown | {f"bytes of {name}": f"{stored} of shape {tuple(shape)}" for name, (stored, shape) in packed.items()}


def _kept(info: FileInfo) -> tuple[dict[str, str], dict[str, Any]]:
    wrong = ValueError(f"{info.path}: its metadata {KEY!r} are not what a safetensors file leaves")
    try:
        kept = json.loads(info.metadata.get(KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise wrong from error
    if type(kept) is not dict or set(kept) - {"metadata", "packed"}:
        raise wrong
    metadata, packed = kept.get("metadata", {}), kept.get("packed", {})
    if type(metadata) is not dict or type(packed) is not dict or not all(type(value) is str for value in metadata.values()):
        raise wrong
    for entry in packed.values():
        if type(entry) is not list or len(entry) != 2 or type(entry[0]) is not str or type(entry[1]) is not list:
            raise wrong
        if not all(type(x) is int and x >= 0 for x in entry[1]):
            raise wrong
    return metadata, packed
