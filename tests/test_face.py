"""The names that `import bqjax` gives, and what it must not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bqjax

# Optional packages, and what takes long to import and only reports and commands use.
NOT_IMPORTED = ["flax", "optax", "orbax", "tokenizers", "tensorflow_datasets", "sklearn", "soundfile", "matplotlib", "rich", "tyro"]


def test_public_names_are_sorted_and_exist():
    assert bqjax.__all__ == sorted(bqjax.__all__) and len(bqjax.__all__) <= 36
    assert all(hasattr(bqjax, name) for name in bqjax.__all__)


def test_optional_packages_are_not_needed():
    code = f"import sys\nfor name in {NOT_IMPORTED}: sys.modules[name] = None\n"
    code += "import bqjax, bqjax.adapters.checkpoints, bqjax.models, bqjax.sensitivity"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
