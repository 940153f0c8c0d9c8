"""The safetensors header of a file of ours."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from bqjax.core.recognize import recognize_bytes

__all__ = ["VERSION", "Header", "placeholder", "read", "read_exactly"]

VERSION = "1"

_LENGTH_BYTES = 8
_MAX_HEADER = 1 << 16  # ours are below 400 bytes, but another writer may format the same JSON at more length
_SIZE = 320  # of the JSON we write: fixed, because it is filled in after the data have been written
_START = 4096  # what tells one kind of file from another


@dataclass(frozen=True)
class Header:
    """Sizes of the two sections in bytes, the checksum, and the header's own size with its eight bytes of length."""

    data_bytes: int
    tree_bytes: int
    sha256: str
    data_offset: int = _LENGTH_BYTES + _SIZE

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_offset + self.data_bytes + self.tree_bytes

    def to_bytes(self) -> bytes:
        """The header as it is written: as long as :func:`placeholder`, filled up with spaces as the format allows."""
        end = self.data_bytes + self.tree_bytes
        text = json.dumps(
            {
                "__metadata__": {"format": "bqjax", "version": VERSION, "sha256": self.sha256},
                "data": {"dtype": "U8", "shape": [self.data_bytes], "data_offsets": [0, self.data_bytes]},
                "tree": {"dtype": "U8", "shape": [self.tree_bytes], "data_offsets": [self.data_bytes, end]},
            },
            separators=(",", ":"),
        )
        return _SIZE.to_bytes(_LENGTH_BYTES, "little") + text.encode().ljust(_SIZE)


def placeholder() -> bytes:
    """Bytes to leave room for the header."""
    return bytes(_LENGTH_BYTES + _SIZE)


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """``size`` bytes from the file's position.

    Raises:
      ValueError: the file ends before.
    """
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"truncated: {size} bytes were expected at the end, there are {len(data)}")
    return data


def read(file: BinaryIO) -> Header:
    """Reads and checks the header: the two sections and it make up the whole file.

    Raises:
      ValueError: saying what is wrong, or what the file looks like where it is not one of ours.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(_START)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise ValueError(_not_ours(start, size))
    if length > size - _LENGTH_BYTES:
        raise ValueError(_not_ours(start, size) + f": a header of {length} bytes does not fit into {size} bytes (truncated?)")
    if length > _MAX_HEADER:
        raise ValueError("not a bqjax file: it looks like a plain safetensors file of many tensors: `bqjax compress` reads it")
    file.seek(_LENGTH_BYTES)
    try:
        parsed = json.loads(read_exactly(file, length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a bqjax file, or a damaged one: its header is not JSON ({error})") from error
    metadata = parsed.get("__metadata__") if type(parsed) is dict else None
    if type(metadata) is not dict or metadata.get("format") != "bqjax":
        raise ValueError("not a bqjax file: it looks like a plain safetensors file: `bqjax compress` reads it")
    if (version := metadata.get("version")) != VERSION:
        raise ValueError(
            f"it has format version {str(version)[:20]!r}, this release reads version {VERSION!r}: install a newer one"
        )
    sha256 = metadata.get("sha256")
    if type(sha256) is not str or len(sha256) != 64:
        raise ValueError("its header states no sha256")
    if set(parsed) != {"__metadata__", "data", "tree"}:
        raise ValueError("its header names other tensors than `data` and `tree`")
    start_of_tree = _section(parsed["data"], 0)
    end = _section(parsed["tree"], start_of_tree)
    head = Header(start_of_tree, end - start_of_tree, sha256, _LENGTH_BYTES + length)
    if head.file_bytes != size:
        problem = "truncated" if size < head.file_bytes else "longer than it should be"
        raise ValueError(f"{problem}: its header describes {head.file_bytes} bytes, it has {size}")
    return head


def _section(entry: Any, begin: int) -> int:
    """End of a tensor of bytes that begins at ``begin``."""
    offsets = entry.get("data_offsets") if type(entry) is dict else None
    if type(offsets) is not list or len(offsets) != 2 or not all(type(x) is int for x in offsets):
        raise ValueError("its header has no offsets for `data` or `tree`")
    if offsets[0] != begin or not begin <= offsets[1] < 1 << 63:
        raise ValueError("its header has offsets that overlap, leave a gap or run backwards")
    if entry.get("dtype") != "U8" or entry.get("shape") != [offsets[1] - begin]:
        raise ValueError("its header describes `data` or `tree` as something else than that many bytes")
    return offsets[1]


def _not_ours(start: bytes, size: int) -> str:
    if not size:
        return "not a bqjax file: it is empty"
    kind = recognize_bytes(start)
    looks = "" if kind is None or kind.name == "bqjax" else f": it looks like {kind.what}, {kind.remedy}"
    return "not a bqjax file" + looks
