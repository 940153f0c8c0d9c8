"""Functions of test files that need several devices, run in one process with four: results by name.

A process takes seconds to start and to import JAX, so that one serves all tests of a session.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
DEVICES = 4

# By name: the test file under tests/, and its function without arguments that returns JSON data. It runs in a folder of its own.
FUNCTIONS = {
    "curvature": ("sensitivity/test_curvature.py", "on_all_devices"),
    "engine": ("sensitivity/test_evaluator_engine.py", "on_devices_twice"),
    "sweeps": ("sensitivity/test_multi_device.py", "on_all_devices"),
    "groups": ("core/test_gather.py", "on_different_devices"),
    "pytree": ("test_any_pytree.py", "on_different_devices"),
    "statistics": ("train/image/test_stored.py", "on_all_devices"),
    "rows": ("experiment/test_side_by_side.py", "side_by_side"),
}

_PROCESS = """
import importlib.util, json, os, sys, traceback
import jax
devices, out, functions, *folders = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_numpy_rank_promotion", "raise")
sys.path[:0] = folders
found = {}
for name, (file, function) in json.loads(functions).items():
    os.makedirs(name)
    os.chdir(name)
    try:
        spec = importlib.util.spec_from_file_location(f"on_devices_{name}", file)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[name] = {"result": getattr(module, function)()}
    except Exception:
        found[name] = {"error": traceback.format_exc()}
    os.chdir("..")
with open(out, "w") as file:
    json.dump(found, file)
"""


def found_on_devices(folder: Path, names: Collection[str]) -> dict[str, Any]:
    """What the named functions give where there are four CPU devices, or their errors.

    Python writes floats so that they are read back to the last bit. Workers of one session that share the folder share the
    process: the first starts it, the others wait.
    """
    folder.mkdir(exist_ok=True)
    out = folder / "found.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            functions = {name: (str(TESTS / file), function) for name, (file, function) in FUNCTIONS.items() if name in names}
            command = [sys.executable, "-c", _PROCESS, str(DEVICES), str(out), json.dumps(functions), str(TESTS), str(TESTS.parent)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
            if done.returncode:
                raise RuntimeError(done.stderr)
    return json.loads(out.read_text())
