"""The wheel: it holds `bqjax` alone, and works with what it says it needs and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, **options) -> str:
    # A PYTHONPATH of the tests' own would show pip and Python a bqjax that is not installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=280, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by pip from a copy of the sources, so that nothing is left in the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bqjax", "train"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


def needed(wheel: Path) -> set[str]:
    """Distributions that the wheel's metadata ask for without any extra, and those that these ask for."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = importlib.metadata.PathDistribution(zipfile.Path(file, name.removesuffix("METADATA")))
        waiting = list(metadata.requires or [])
    found: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            waiting += importlib.metadata.requires(name) or []
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and what it needs: links to the packages of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in needed(wheel):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    return python


def test_the_wheel_holds_one_package(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"bqjax"}
    assert "bqjax/py.typed" in names
    held = {name for name in names if name.endswith(".py")}
    assert held == {path.relative_to(ROOT).as_posix() for path in (ROOT / "bqjax").rglob("*.py")}


def test_import_needs_the_base_dependencies_alone(python, tmp_path):
    """And of these neither those of the command line nor those of pictures."""
    absent = ["flax", "optax", "orbax", "tensorflow_datasets", "sklearn", "train"]
    code = f"""
import importlib.util, json, sys
import bqjax
missing = [name for name in {absent} if importlib.util.find_spec(name) is None]
print(json.dumps([bqjax.__file__, missing, sorted(set(sys.modules) & {{"matplotlib", "tyro", "rich"}})]))
"""
    where, missing, loaded = json.loads(run(python, "-c", code, cwd=tmp_path))
    assert "site-packages" in where
    assert missing == absent
    assert loaded == []


def test_weights_go_through_the_command(python, tmp_path):
    weights = {
        "dense/kernel": np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32),
        "dense/bias": np.zeros(128, np.float32),
    }
    save_file(weights, tmp_path / "w.safetensors")
    command = python.parent / "bqjax"
    run(command, "compress", "w.safetensors", "--method", "kmeans", "--bins", "16", cwd=tmp_path)
    assert (tmp_path / "w.bq.safetensors").stat().st_size < 6000  # of 33,280 bytes
    assert "dense/kernel" in run(python, "-m", "bqjax", "inspect", "w.bq.safetensors", cwd=tmp_path)
    run(command, "decompress", "w.bq.safetensors", "--out", "back.safetensors", cwd=tmp_path)
    back = load_file(tmp_path / "back.safetensors")
    np.testing.assert_array_equal(back["dense/bias"], weights["dense/bias"])
    assert len(np.unique(back["dense/kernel"])) == 16
    assert np.mean((back["dense/kernel"] - weights["dense/kernel"]) ** 2) < 0.02  # of a variance of 1: 0.0095 is the best for 16
