"""One file for a compressed tree: a safetensors file, format version 1.

Any safetensors reader opens it and finds

- ``__metadata__``: ``format`` (``"bqjax"``), ``version`` (``"1"``) and ``sha256``, the checksum of all that follows the header;
- tensor ``data``, U8: per leaf its codes and its codebook or scales, or its values, one after the other, little-endian;
- tensor ``tree``, U8: one zstandard frame of compact JSON with the tree's structure (:mod:`bqjax.codec.structure`), a
  record for every leaf (:mod:`bqjax.codec.records`) and the user's metadata.

Why not a tensor per leaf: an entry of a safetensors header takes about 100 bytes of JSON, and a network of 100 leaves
that was compressed to 30 kB must not carry a header of 10 kB. Offsets are not stored, they are the sums of the lengths,
so that leaves cannot overlap.

Reading trusts nothing and runs nothing. :func:`load` verifies the checksum before it decodes anything; and also where a
checksum was made to fit, no count is believed that the bytes there do not bear out: a stream holds at least a byte per
1,024 symbols, the tree a byte per 64 bytes of JSON (the writer adds zero bytes where a coder needs fewer).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from bqjax.codec import entropy, header, structure
from bqjax.codec.header import read_exactly
from bqjax.codec.info import FileInfo, LeafInfo
from bqjax.codec.records import parse_records, to_record
from bqjax.codec.same import Written, again, check_repeated, fingerprint
from bqjax.codec.streams import ReadGroup, WrittenGroup, decode_leaf, encode_leaf
from bqjax.core.files import atomic_write
from bqjax.core.leaves import is_compressed
from bqjax.core.tree import named_leaves

__all__ = ["Deferred", "inspect", "load", "read_leaves", "save"]

_JSON_PER_BYTE = 64
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Deferred:
    """A leaf that does not exist before it is written: :func:`save` makes it when its turn comes, and keeps nothing of it.

    Attributes:
      make: returns an array or a compressed leaf; called once for each file that is written.
    """

    make: Callable[[], Any]


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    coder: str = "auto",
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
    thorough: bool = True,
) -> FileInfo:
    """Writes a compressed tree to one file.

    The file appears whole or not at all. Leaves are encoded and written one by one: besides the tree, memory holds what
    one leaf needs.

    Args:
      path: the file, by custom ``*.bq.safetensors``.
      tree: nested dicts with ``str`` or ``int`` keys, lists, tuples and None are restored as they are; other nodes
        (NamedTuple, dataclass) come back as dicts unless :func:`load` is given ``like``. Leaves are compressed leaves
        and arrays of numbers or booleans, including NumPy scalars. Python numbers are refused, since they have no dtype.
        A :class:`Deferred` leaf is made when its turn comes, so that a tree need not fit into memory. Leaves that are one
        object, or have equal content, are written once: one object (tied weights) is one again when the file is read, equals
        are read as objects of their own.
      coder: for the codes of all compressed leaves, see :mod:`bqjax.codec.entropy`. ``"auto"`` tries all of them leaf by leaf,
        at about 1 s per million codes; ``"ans"`` is nearly always as small and takes a fiftieth of that.
      force: overwrite an existing file.
      metadata: strings by name to keep in the file.
      thorough: take for each array leaf the smallest of itself, zstandard (level 19 up to 1 MB, then 3) and byte planes
        (:mod:`bqjax.codec.planes`). False: byte planes at hundreds of MB/s, and zstandard at level 3 for integers.

    Returns:
      What was written.

    Raises:
      ValueError: ``path`` exists and ``force`` is False; a leaf that cannot be stored or is not valid; leaves of one
        group with different codebooks; two leaves of one name; a dict key that is neither ``str`` nor ``int``; an unknown coder.

    Example:
      >>> import tempfile, os
      >>> from bqjax.core.leaves import Clustered
      >>> leaf = Clustered(np.array([0, 1, 1, 0], np.uint8), np.array([[-1.0], [2.0]], np.float32), (2, 2), np.float32)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     info = save(os.path.join(folder, "net.bq.safetensors"), {"w": leaf}, coder="raw")
      ...     restored = load(info.path)
      >>> restored["w"].indices.tolist(), info.leaves[0].code_bytes, info.leaves[0].table_bytes
      ([0, 1, 1, 0], 1, 8)
    """
    if coder not in (*entropy.CODERS, "auto"):
        raise ValueError(f"unknown coder {coder!r}: choose from {', '.join(entropy.CODERS)}, auto")
    metadata = dict(metadata or {})
    if not all(type(x) is str for item in metadata.items() for x in item):
        raise ValueError("metadata must map strings to strings")
    document, leaves = structure.flatten(tree)
    groups: dict[str, WrittenGroup] = {}
    infos = []
    digest = hashlib.sha256()
    with atomic_write(path, force=force) as file:

        def write(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        file.write(header.placeholder())
        written = Written()
        for name, leaf in leaves.items():
            if (info := written.object(name, leaf)) is None:
                made = leaf.make() if isinstance(leaf, Deferred) else leaf
                mark = fingerprint(name, made)
                if (info := written.equal(name, mark)) is None:
                    info, parts = encode_leaf(name, made, coder, groups, thorough)
                    for part in parts:
                        write(part)
                    written.add(info, leaf, mark)
                    del parts  # before the next leaf is made
                del made
            infos.append(info)
        data_bytes = sum(info.bytes for info in infos)
        described = {"t": document, "l": [to_record(info) for info in infos], **({"m": metadata} if metadata else {})}
        text = json.dumps(described, separators=(",", ":"), allow_nan=False).encode()
        packed = entropy.zstd(text, checksum=True).ljust(-(-len(text) // _JSON_PER_BYTE), b"\0")
        write(packed)
        start = header.Header(data_bytes, len(packed), digest.hexdigest())
        file.seek(0)
        file.write(start.to_bytes())
    return FileInfo(
        path=Path(path),
        version=header.VERSION,
        file_bytes=start.file_bytes,
        leaves=tuple(infos),
        metadata=metadata,
        sha256=start.sha256,
    )


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Reads a tree that :func:`save` wrote, bit for bit.

    Args:
      path: the file.
      like: a tree to take the structure from, for nodes that a file does not restore (NamedTuples, dataclasses). Its
        leaves may be arrays, ``ShapeDtypeStruct`` or compressed leaves; their names and shapes must be the file's.

    Returns:
      The tree, with NumPy arrays in its leaves.

    Raises:
      ValueError: naming the file and what is wrong with it, or how ``like`` differs.
      OSError: the file cannot be opened or read.
    """
    with _reading(path) as (file, head):
        document, infos, _ = _read_tree(file, head)
        _verify(file, head)
        file.seek(head.data_offset)
        groups: dict[str, ReadGroup] = {}
        leaves: dict[str, Any] = {}
        for info in infos:
            leaves[info.name] = again(leaves[info.same_as], info) if info.same_as is not None else decode_leaf(file, info, groups)
        if like is None:
            return structure.unflatten(document, leaves.__getitem__)
        return _into(like, leaves)


def read_leaves(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """The leaves of a file one by one, as :func:`load` gives them: memory holds one at a time, and those that come again.

    The checksum of the whole file is verified before the first.

    Yields:
      Name and leaf, in the order of the file.

    Raises:
      ValueError: naming the file and what is wrong with it.
      OSError: the file cannot be opened or read.
    """
    with _reading(path) as (file, head):
        _, infos, _ = _read_tree(file, head)
        _verify(file, head)
        file.seek(head.data_offset)
        groups: dict[str, ReadGroup] = {}
        last = {info.same_as: i for i, info in enumerate(infos) if info.same_as is not None}
        kept: dict[str, Any] = {}  # leaves that come again, as long as they do
        for i, info in enumerate(infos):
            if info.same_as is None:
                leaf = decode_leaf(file, info, groups)
                if info.name in last:
                    kept[info.name] = leaf
            else:
                leaf = again(kept[info.same_as], info)
                if last[info.same_as] == i:
                    del kept[info.same_as]
            yield info.name, leaf
            del leaf


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """What a file holds, from its header and its tree: no stream is read, the checksum is stated but not verified.

    Raises:
      ValueError: naming the file and what is wrong with it.
      OSError: the file cannot be opened or read.
    """
    with _reading(path) as (file, head):
        _, infos, metadata = _read_tree(file, head)
    return FileInfo(
        path=Path(path),
        version=header.VERSION,
        file_bytes=head.file_bytes,
        leaves=infos,
        metadata=metadata,
        sha256=head.sha256,
    )


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, header.Header]]:
    with Path(path).open("rb") as file:
        try:
            yield file, header.read(file)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def _verify(file: BinaryIO, head: header.Header) -> None:
    digest = hashlib.sha256()
    file.seek(head.data_offset)
    while block := file.read(_HASH_CHUNK):
        digest.update(block)
    if digest.hexdigest() != head.sha256:
        raise ValueError("damaged: the checksum (sha256) of its content is not the stated one")


def _read_tree(file: BinaryIO, head: header.Header) -> tuple[Any, tuple[LeafInfo, ...], dict[str, str]]:
    """Structure, leaves and metadata, with the leaves' sizes checked against the data section."""
    file.seek(head.data_offset + head.data_bytes)
    packed = read_exactly(file, head.tree_bytes)
    size = entropy.zstd_size(packed)
    if size > _JSON_PER_BYTE * len(packed):
        raise ValueError(f"the tree's description claims {size} bytes in {len(packed)}: more than {_JSON_PER_BYTE} to one")
    try:
        described = json.loads(entropy.unzstd(packed, size))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tree's description cannot be read ({error})") from error
    if type(described) is not dict or not {"t", "l"} <= set(described) <= {"t", "l", "m"}:
        raise ValueError("the tree's description is not one of format version 1")
    metadata = described.get("m", {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise ValueError("the metadata are not strings by name")
    names: list[str] = []
    structure.unflatten(described["t"], names.append)
    infos = parse_records(names, described["l"])
    stored = sum(info.bytes for info in infos)
    if stored != head.data_bytes:
        raise ValueError(f"the leaves take {stored} bytes, the data section has {head.data_bytes}")
    check_repeated(infos)
    return described["t"], infos, metadata


def _into(like: Any, leaves: Mapping[str, Any]) -> Any:
    """The leaves in the structure of ``like``."""
    wanted = named_leaves(like)
    for what, names in (
        ("has leaves that `like` has not", leaves.keys() - wanted.keys()),
        ("lacks leaves of `like`", wanted.keys() - leaves.keys()),
    ):
        if names:
            shown = ", ".join(map(repr, sorted(names)[:4]))
            raise ValueError(f"the file {what}: {shown}{', ...' if len(names) > 4 else ''}")
    for name, leaf in wanted.items():
        shape = tuple(leaf.shape) if hasattr(leaf, "shape") else np.shape(leaf)
        if shape != tuple(leaves[name].shape):
            raise ValueError(f"leaf {name!r} has shape {tuple(leaves[name].shape)} in the file and {shape} in `like`")
    treedef = jax.tree.structure(like, is_leaf=is_compressed)
    return jax.tree.unflatten(treedef, [leaves[name] for name in wanted])
