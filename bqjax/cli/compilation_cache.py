"""The commands' persistent compilation cache: what was compiled once is read from a file by the next command."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

__all__ = ["use_compilation_cache"]

_MOST_BYTES = 1_000_000_000


def use_compilation_cache() -> Path | None:
    """Turns JAX's persistent compilation cache on, unless the user has set one or turned it off.

    It lies in ``$XDG_CACHE_HOME/bqjax`` (``~/.cache/bqjax``), in a folder for this kind of processor, as compiled code does not run
    on every other. JAX keeps there what took a second to compile. Where the folder has grown beyond 1 GB the oldest files go.

    ``JAX_COMPILATION_CACHE_DIR=folder`` names another folder, ``JAX_ENABLE_COMPILATION_CACHE=false`` does without.

    Returns:
      The folder, or None where the cache is the user's own, is off, or cannot be written.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "bqjax" / _processor()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_room(folder)
    except OSError:  # a home that is read-only: every command compiles for itself
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _processor() -> str:
    """A name for this kind of processor."""
    said = [platform.machine(), platform.processor()]
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        said += sorted({line for line in cpu.read_text(errors="replace").splitlines() if line.startswith(("flags", "model name"))})
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


def _make_room(folder: Path) -> None:
    files = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime)
    size = sum(p.stat().st_size for p in files)
    for path in files:
        if size <= _MOST_BYTES:
            return
        size -= path.stat().st_size
        path.unlink(missing_ok=True)
