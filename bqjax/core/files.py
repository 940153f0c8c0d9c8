"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` that takes its name when the block ends without an error.

    Whatever stops the writer (an exception, a full disk, a kill), a file that stood under the name before is still
    there whole, and no partial file appears under it.

    Args:
      path: the final name. Missing parent directories are made.
      force: overwrite an existing file.

    Raises:
      ValueError: ``path`` exists and ``force`` is False.
    """
    path = Path(path)
    if path.exists() and not force:
        raise ValueError(f"{path} exists: pass force=True (--force on the command line) to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
