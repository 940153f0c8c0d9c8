"""Settings that every test runs under, what each test compiled (``--compiles``), and the real data where it is present."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from several_devices import FUNCTIONS, TESTS, found_on_devices

# Most of the suite's time is XLA's, over programs that then run for a moment: half of it goes into making them fast.
# The numbers are computed in the same precision. `make test-all` runs the same tests on fully optimised programs.
# Set here, before jax is imported, and in the environment, so that processes that tests start have it too.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    # The newer emitters, by way of MLIR, take half as long again, modules in 32 parts a fifth. None that name a number of devices.
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
else:
    os.environ.pop("XLA_FLAGS", None)

# What was compiled is read from a file when it is needed again: in a new jit, in another process, in the next run.
# Small programs, too: tracing, lowering and reading them takes about half of what compiling them anew does.
# One folder a worker, as JAX reads files of its cache while another process may still be writing them.
CACHE = Path(__file__).resolve().parents[1] / ".jax_cache" / os.environ.get("PYTEST_XDIST_WORKER", "main")
CACHE_BYTES = 200_000_000
os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilations take the time of a first example, and two cores are shared between workers: no deadlines.
# `make test-all` takes five times as many examples of each property.
hypothesis.settings.register_profile("bqjax", deadline=None, max_examples=10, derandomize=True)
hypothesis.settings.register_profile("thorough", parent=hypothesis.settings.get_profile("bqjax"), max_examples=50)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "bqjax"))


# --- what was compiled ---------------------------------------------------------------------------------------------------

# Seconds of work, and the number of programs that were compiled and of those that
# were read from a file instead.
_work: Counter[str] = Counter()
_DURATIONS = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}


def _cpu_seconds() -> float:
    """Of all threads of this process, and of the processes that it started and that have ended."""
    return sum(os.times()[:4])


def _add_duration(event: str, seconds: float, **_: object) -> None:
    if event in _DURATIONS:
        _work[_DURATIONS[event]] += seconds  # type: ignore[assignment]
        _work["programs"] += event == "/jax/core/compile/backend_compile_duration"


def _add_event(event: str, **_: object) -> None:
    _work["read"] += event == "/jax/compilation_cache/cache_hits"


class Compiles:
    """Adds up what the workers' tests report, and says it at the end."""

    def __init__(self, shown: int):
        self.shown = shown
        self.tests: dict[str, dict[str, float]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        # With fixtures' work: the first test that needs one pays for it, as it does in time.
        if call.when == "teardown":
            _work["CPU"] += _cpu_seconds()  # type: ignore[assignment]
            item.user_properties.append(("compiles", dict(_work)))
            _work.clear()
            _work["CPU"] -= _cpu_seconds()  # type: ignore[assignment]
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.tests[report.nodeid] = dict(report.user_properties).get("compiles", {})

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: dict[str, Counter[str]] = {}
        for test, work in self.tests.items():
            files.setdefault(test.partition("::")[0], Counter()).update(work)
        for title, rows in (("files", files), ("tests", self.tests)):
            terminalreporter.section(f"{title} that cost most")
            terminalreporter.line("programs  of them read  lowering, s  compiling, s  CPU in all, s")
            for name, work in sorted(rows.items(), key=lambda row: -row[1].get("CPU", 0))[: self.shown]:
                numbers = [work.get(key, 0) for key in ("programs", "read", "lowering", "compiling", "CPU")]
                terminalreporter.line("{:8d}  {:12d}  {:11.2f}  {:12.2f}  {:13.2f}  {}".format(*numbers, name))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compiles",
        type=int,
        default=0,
        metavar="N",
        help="show the N files and the N tests that take most CPU time, and what they compiled",
    )


def pytest_configure(config: pytest.Config) -> None:
    # What older sources compiled stays in the folder; nobody knows which files these are.
    if CACHE.is_dir() and sum(file.stat().st_size for file in CACHE.iterdir()) > CACHE_BYTES:
        shutil.rmtree(CACHE)
    if config.getoption("--compiles"):
        config.pluginmanager.register(Compiles(config.getoption("--compiles")))
        jax.monitoring.register_event_duration_secs_listener(_add_duration)
        jax.monitoring.register_event_listener(_add_event)
        _work["CPU"] -= _cpu_seconds()  # type: ignore[assignment]


# --- data ----------------------------------------------------------------------------------------------------------------


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
def on_four_devices(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a function of :data:`several_devices.FUNCTIONS` returns, by name, where there are four devices."""
    chosen = {item.path for item in request.session.items if "on_four_devices" in getattr(item, "fixturenames", ())}
    names = [name for name, (file, _) in FUNCTIONS.items() if TESTS / file in chosen]
    base = tmp_path_factory.getbasetemp()
    found = found_on_devices((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "four_devices", names)

    def result(name: str) -> Any:
        assert "error" not in found[name], found[name]["error"]
        return found[name]["result"]

    return result
