"""Settings that every test runs under, and the real data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilations take the time of a first example, and two cores are shared between workers: no deadlines.
hypothesis.settings.register_profile("bqjax", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("bqjax")


def _data_dir() -> Path:
    return Path(os.environ.get("BQJAX_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data and weights; the test is skipped where it is absent."""
    folder = _data_dir()
    if not folder.is_dir():
        pytest.skip(f"needs the real data: {folder} is absent (BQJAX_TEST_DATA names another folder)")
    return folder
