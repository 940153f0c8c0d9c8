"""Named arrays kept in a file, so that an interrupted run does not measure them again.

A journal (:mod:`bqjax.core.journal`) keeps many small JSON values as they come; this keeps what one long measurement gives: a
mapping from names to NamedTuples of arrays, written once it is complete. The file is in the safetensors format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bqjax.core.files import atomic_write

__all__ = ["kept_or_measured"]

T = TypeVar("T", bound=tuple[Any, ...])  # a NamedTuple
_KEY = "bqjax-kept"


def kept_or_measured(
    path: str | os.PathLike[str] | None, fingerprint: Mapping[str, str], kind: type[T], measure: Callable[[], Mapping[str, T]]
) -> dict[str, T]:
    """What ``path`` keeps, or else ``measure()``, which is then kept there.

    Args:
      path: the file; None keeps nothing.
      fingerprint: what the measurements depend on, by name.
      kind: the NamedTuple that holds one measurement. Its fields are arrays, or numbers and texts as JSON has them.
      measure: takes the measurements, by name.

    Raises:
      ValueError: the file cannot be read, or was measured on something else; the message names what differs.
    """
    if path is None:
        return dict(measure())
    path = Path(path)
    if path.exists():
        found, old = _read(path, kind)
        if old != dict(fingerprint):
            differ = sorted(f for f in {*old, *fingerprint} if old.get(f) != fingerprint.get(f))
            raise ValueError(f"{path} belongs to another run ({', '.join(differ)} changed): remove it to start anew")
        return found
    measured = dict(measure())
    arrays: dict[str, np.ndarray] = {}
    entries: list[tuple[str, dict[str, Any]]] = []
    for i, (name, values) in enumerate(measured.items()):
        fields = dict(zip(_fields(kind), values, strict=True))
        arrays |= {f"{i}.{field}": _contiguous(value) for field, value in fields.items() if _is_array(value)}
        entries.append((name, {field: value for field, value in fields.items() if not _is_array(value)}))
    described = json.dumps({"entries": entries, "fingerprint": dict(fingerprint)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save(arrays, metadata={_KEY: described}))
    return measured


def _contiguous(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes arrays of no axes ones of one


def _fields(kind: Any) -> tuple[str, ...]:
    return kind._fields


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _read(path: Path, kind: type[T]) -> tuple[dict[str, T], dict[str, str]]:
    """The measurements of a file, and what they were taken on."""
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()[_KEY])
            found = {
                name: kind(**{f: given[f] if f in given else file.get_tensor(f"{i}.{f}") for f in _fields(kind)})
                for i, (name, given) in enumerate(described["entries"])
            }
        return found, dict(described["fingerprint"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path} does not hold measurements of this kind: remove it ({error})") from error
