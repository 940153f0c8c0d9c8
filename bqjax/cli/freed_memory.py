"""The commands' freed memory stays with the process: the next call of a program need not ask the system for it again."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
# Options of mallopt(3), by their numbers in malloc.h: no piece is given back by itself, nor what is free at the end, and one
# arena for all threads, as their own would be given back whatever the others say.
_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed, in place of giving it back to the system (``mallopt`` of glibc).

    On a CPU, XLA asks ``malloc`` for the temporary memory of a compiled program at each call, all of it in one piece. glibc gives
    pieces above 32 MiB back as soon as they are freed, and at the next call the system fills every page with zeros: half a
    gigabyte for a training step of ResNet-20 on 128 images, a quarter of its CPU time. Kept, it is there until the process ends. So
    this is for commands that run a program many times, and not for a library to decide.

    What the user has set by ``MALLOC_...`` or ``GLIBC_TUNABLES`` stays; ``MALLOC_ARENA_MAX=8`` does without.

    Returns:
      Whether it was done: not with another C library than glibc, nor where the user has set such a variable.

    Source:
      mallopt(3), Linux man-pages.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OF_THE_USER):
        return False
    libc = ctypes.CDLL(None)
    done = [libc.mallopt(option, value) for option, value in _OPTIONS.values()]
    return all(done)
