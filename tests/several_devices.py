"""Runs a function of a test module in a process of its own that has several devices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_PROCESS = """
import json, sys
import jax
devices, out, module, function, *folders = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_numpy_rank_promotion", "raise")
sys.path[:0] = folders
found = getattr(__import__(module), function)()
with open(out, "w") as file:
    json.dump(found, file)
"""


def found_on(devices: int, module: str, function: str, folder: Path) -> Any:
    """What ``function()`` of the test file ``module`` returns, as JSON data, where there are so many CPU devices.

    It runs in ``folder``. Python writes floats so that they are read back to the last bit.
    """
    tests = Path(__file__).resolve().parent
    test_file = Path(module).resolve()
    out = folder / "found.json"
    command = [sys.executable, "-c", _PROCESS, str(devices), str(out), test_file.stem, function]
    folders = [str(test_file.parent), str(tests), str(tests.parent)]
    done = subprocess.run(command + folders, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())
