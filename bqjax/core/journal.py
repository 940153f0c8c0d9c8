"""Append-only journal of measurements, so that an interrupted search or sweep goes on where it was.

Searches here are deterministic functions of their measurements. A journal therefore stores measurements, not
progress: run again, the search asks for the same ones in the same order, the journal answers those that were
finished, and the end is the same as without the interruption.

The file is JSON lines: a header with the fingerprint of what was measured, then one line a measurement, appended
and flushed as it is made. A line that a kill cut short is dropped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

__all__ = ["Journal", "digest", "packed", "unpacked"]

_VERSION = 1


def digest(tree: Any) -> str:
    """SHA-256 over a pytree's structure and its leaves' dtypes, shapes and bytes, as 32 hexadecimal digits."""
    h = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        h.update(f"{jax.tree_util.keystr(path)}:{array.dtype}{array.shape};".encode())
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()[:32]


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array of numbers as JSON data, compressed; :func:`unpacked` gives it back bit for bit."""
    data = zlib.compress(np.ascontiguousarray(array).tobytes(), 1)
    return {"dtype": str(array.dtype), "shape": list(array.shape), "zlib": base64.b64encode(data).decode()}


def unpacked(value: Mapping[str, Any]) -> np.ndarray:
    """The array that :func:`packed` was given."""
    data = zlib.decompress(base64.b64decode(value["zlib"]))
    return np.frombuffer(data, np.dtype(value["dtype"])).reshape(value["shape"])


class Journal:
    """A journal: measurements by key. Without a path it only remembers within the process.

    Args:
      path: the file; made if it does not exist, continued if it does.
      fingerprint: what the measurements depend on, by name (``{"params": ..., "data": ..., "config": ...}``).

    Attributes:
      answered: how often :meth:`measure` was answered by what an earlier process left in the file.

    Raises:
      ValueError: the file is not a journal, is damaged before its last line, or has another fingerprint; the message
        names the fields that differ.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, fingerprint: Mapping[str, str] | None = None):
        self._values: dict[str, Any] = {}
        self._from_file: set[str] = set()
        self._file: BinaryIO | None = None
        self.answered = 0
        if path is None:
            return
        path = Path(path)
        header = {"bqjax-journal": _VERSION, "fingerprint": dict(fingerprint or {})}
        if path.exists() and path.stat().st_size:
            self._read(path, header)
            self._from_file = set(self._values)
            self._file = path.open("ab")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._append(header)

    def _read(self, path: Path, header: Mapping[str, Any]) -> None:
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    entry = json.loads(line)
                    if not (line.endswith(b"\n") and isinstance(entry, dict)):
                        raise ValueError("cut short")
                    if number == 0:
                        found = entry["bqjax-journal"], dict(entry["fingerprint"])
                    else:
                        self._values[entry["k"]] = entry["v"]
                except (ValueError, KeyError, TypeError) as error:
                    if number and not file.read(1):
                        break  # the line that was being written when the process died
                    raise ValueError(f"{path} is not a journal, or is damaged in line {number + 1}: remove it") from error
                whole += len(line)
        if found != (_VERSION, header["fingerprint"]):
            old, new = found[1], header["fingerprint"]
            differ = sorted(f for f in {*old, *new} if old.get(f) != new.get(f)) or ["version"]
            raise ValueError(
                f"{path} belongs to another run ({', '.join(differ)} changed): remove it to start anew, or name another file"
            )
        os.truncate(path, whole)

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            self._file.flush()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def measure(self, key: str, function: Callable[[], Any]) -> Any:
        """The value under ``key``, from the journal or else from ``function()``, which must give JSON data."""
        if key in self._values:
            self.answered += key in self._from_file
            return self._values[key]
        value = function()
        self._append({"k": key, "v": value})
        self._values[key] = value
        return value

    def close(self) -> None:
        """Closes the file; what was measured stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
