"""Settings that every test runs under, and the real data where it is present."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from several_devices import FUNCTIONS, TESTS, found_on_devices

# Most of the suite's time is XLA's, over programs that then run for a moment: a quarter of it goes into making them fast.
# The numbers are computed in the same precision. `make test-all` runs the same tests on fully optimised programs.
# Set here, before jax is imported, and in the environment, so that processes that tests start have it too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilations take the time of a first example, and two cores are shared between workers: no deadlines.
hypothesis.settings.register_profile("bqjax", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("bqjax")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What took a moment to compile is read from a file when it is needed again: in a new jit, or in another process.

    One folder a worker, as JAX reads files of its cache while another process may still be writing them.
    """
    folder = str(tmp_path_factory.mktemp("compiled"))
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _data_dir() -> Path:
    return Path(os.environ.get("BQJAX_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data and weights; the test is skipped where it is absent."""
    folder = _data_dir()
    if not folder.is_dir():
        pytest.skip(f"needs the real data: {folder} is absent (BQJAX_TEST_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def on_four_devices(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, compiled_once: None
) -> Callable[[str], Any]:
    """What a function of :data:`several_devices.FUNCTIONS` returns, by name, where there are four devices."""
    chosen = {item.path for item in request.session.items}
    names = [name for name, (file, _) in FUNCTIONS.items() if TESTS / file in chosen]
    base = tmp_path_factory.getbasetemp()
    found = found_on_devices((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "four_devices", names)

    def result(name: str) -> Any:
        assert "error" not in found[name], found[name]["error"]
        return found[name]["result"]

    return result
