"""Freed memory that stays: counted in pages that the system had to give."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from bqjax.cli import freed_memory

# 200 MB are filled and freed four times; pages given for each. NumPy alone, so that nothing else is allocated.
PROGRAM = """
import resource
import numpy as np
{set_up}
pages = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(200_000_000, np.uint8)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*pages)
"""
KEEP = "from bqjax.cli.freed_memory import keep_freed_memory\nassert keep_freed_memory()"


def pages(set_up: str) -> list[int]:
    """Pages of memory that each of four fillings of 200 MB was given, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in freed_memory._OF_THE_USER}
    program = [sys.executable, "-c", PROGRAM.format(set_up=set_up)]
    said = subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout
    return [int(n) for n in said.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_memory_is_given_once():
    kept, as_it_is = pages(KEEP), pages("")
    # 95 pages of 2 MB or 48,828 of 4 kB, as the system likes.
    assert min(as_it_is) > 50 and kept[0] > 50
    assert max(kept[1:]) < 10


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    assert not freed_memory.keep_freed_memory()


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not freed_memory.keep_freed_memory()
