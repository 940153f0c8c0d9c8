"""Files appear whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from bqjax.core.files import atomic_write


def names(folder):
    return [p.name for p in folder.iterdir()]


def test_a_new_file_holds_what_was_written(tmp_path):
    path = tmp_path / "made" / "for" / "it" / "new.bin"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(b" two")
    assert path.read_bytes() == b"one two"
    assert names(path.parent) == ["new.bin"]


def test_an_existing_file_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"exists: pass force=True \(--force"), atomic_write(path) as file:
        file.write(b"never")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_force_replaces_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a longer old file")
    with atomic_write(str(path), force=True) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"a longer old file"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_inside_leaves_what_was_there_and_no_temporary(tmp_path, error, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), atomic_write(path, force=True) as file:
        file.write(b"half")
        file.flush()
        raise error
    assert (path.read_bytes() if path.exists() else None) == old
    assert names(tmp_path) == ([] if old is None else ["file"])


def test_a_kill_in_mid_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old and whole")
    program = (
        "import os, signal, sys\n"
        "from bqjax.core.files import atomic_write\n"
        "with atomic_write(sys.argv[1], force=True) as file:\n"
        "    file.write(b'x' * 100_000)\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old and whole"
    # A kill leaves the temporary file behind; it has neither the file's name nor the look of one.
    rest = [p for p in tmp_path.iterdir() if p != path]
    assert all(p.name.startswith(".") and p.suffix == ".tmp" for p in rest)
    assert sum(p.stat().st_size for p in rest) == 100_000
    with atomic_write(path, force=True) as file:
        file.write(b"next")
    assert path.read_bytes() == b"next"
