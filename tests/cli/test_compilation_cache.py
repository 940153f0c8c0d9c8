"""The commands' compilation cache: where it lies, and how one does without."""

from __future__ import annotations

import os
from contextlib import contextmanager

import jax
import pytest

from bqjax.cli import compilation_cache
from bqjax.cli.compilation_cache import use_compilation_cache


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """No cache is named, and the user's is in an empty folder."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


@contextmanager
def turned_off():
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_it_lies_in_the_users_cache_for_this_processor(unset):
    folder = use_compilation_cache()
    assert folder.parent == unset / "bqjax" and folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o077 == 0


def test_the_users_own_is_left_alone(unset):
    jax.config.update("jax_compilation_cache_dir", str(unset / "mine"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(unset / "mine")


def test_it_can_be_turned_off(unset):
    with turned_off():
        assert use_compilation_cache() is None and not list(unset.iterdir())


def test_a_home_that_cannot_be_written_is_no_error(unset):
    (unset / "bqjax").write_text("a file where the folder would be")
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_the_oldest_files_go_when_there_are_too_many(unset, monkeypatch):
    folder = use_compilation_cache()
    for i, name in enumerate(("old", "middle", "new")):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (i, i))
    monkeypatch.setattr(compilation_cache, "_MOST_BYTES", 25)
    jax.config.update("jax_compilation_cache_dir", None)
    use_compilation_cache()
    assert sorted(p.name for p in folder.iterdir()) == ["middle", "new"]
