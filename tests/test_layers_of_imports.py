"""Imports point one way: each module may use those of lower layers, and heavy dependencies stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the bottom. A module may import from its own package and from lower layers, never sideways or up.
LAYERS = [
    {"_version", "files", "blocks", "audio", "transcripts", "progress", "quantizers", "budget", "price_search"},
    {"leaves"},
    {"tree", "segments", "tiles", "seeding", "gradient_stats"},
    {"histogram", "lloyd", "by_shape"},
    {"kmeans", "vector_kmeans", "gwk_blocks", "sorted_weights", "codec", "adapters"},
    {"bin_and_quant", "compensation", "sensitivity", "tflite_container", "gwk", "codebooks"},
    {"rate", "rate_blocks", "lattice", "assignment"},
    {"gwk_loop"},
    {"layer_stats"},
    {"quantised_search", "measured_state"},
    {"search", "related", "task", "figures"},
    {"scoring"},
    {"methods", "models", "tflite_network"},
    {"planned", "gwk_method", "related_methods"},
    {"experiment", "sweeps"},
    {"tflite_experiment", "compare", "layer_curves"},
    {"budget_search"},
    {"report", "budget_method"},
    {"commands"},
    {"sweep_command", "tflite_command", "compare_command", "budget_command", "weights_command"},
    {"cli"},
]


def files():
    found = sorted(p for folder in ("bqjax", "train") for p in (ROOT / folder).rglob("*.py"))
    if len(found) < 20:
        raise RuntimeError(f"the sources are not under {ROOT}")
    return found


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {module_name(p) for p in files()}


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                package = package if path.name == "__init__.py" else package[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            # `from package import module` imports the module, `from module import name` does not.
            within = {f"{base}.{alias.name}" for alias in node.names}
            modules = {name for name in within if name in KNOWN}
            names |= modules
            if modules != within:
                names.add(base)
            if base.split(".")[0] not in ("bqjax", "train"):
                names |= within
    return names


def top(module: str) -> str:
    """The unit of a layer that a module of the package belongs to: its first name below the package."""
    return module.removeprefix("bqjax").removeprefix(".").split(".")[0]


IMPORTS = {module_name(p): imported(p) for p in files()}
LEVEL = {unit: i for i, layer in enumerate(LAYERS) for unit in layer}


def uses(module: str, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in IMPORTS[module])


def within(module: str, *packages: str) -> bool:
    return any(module == p or module.startswith(p + ".") for p in packages)


def test_every_module_has_a_layer():
    units = {top(m) for m in IMPORTS if within(m, "bqjax")} - {""}
    assert units == set(LEVEL)


def test_imports_point_downwards():
    wrong = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, "bqjax") and top(module)
        for name in names
        if within(name, "bqjax")
        # The package itself holds the version and the public names, which only reach up.
        if not top(name) or (top(name) != top(module) and LEVEL[top(name)] >= LEVEL[top(module)])
    ]
    assert wrong == []


def test_no_module_imports_another_that_imports_it():
    """Within a package too, where layers do not tell."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for name in IMPORTS[module]:
            if name in KNOWN and name != module:
                visit(name, (*path, module))
        done.add(module)

    for module in sorted(KNOWN):
        visit(module, ())


def test_the_library_does_not_import_training():
    assert [m for m in IMPORTS if within(m, "bqjax") and uses(m, "train")] == []


def test_reading_a_file_needs_only_leaves_names_and_blocks():
    allowed = {"codec", "leaves", "tree", "blocks", "files"}
    used = {
        f"{m} -> {n}"
        for m in IMPORTS
        if within(m, "bqjax.codec")
        for n in IMPORTS[m]
        if within(n, "bqjax") and top(n) not in allowed
    }
    assert used == set()


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("flax", ("bqjax.adapters", "bqjax.models", "train")),
        ("optax", ("bqjax.adapters", "bqjax.models", "train")),
        ("orbax", ("train",)),
        ("tensorflow_datasets", ("train",)),
        ("tensorflow", ()),
        ("sklearn", ("train",)),
        ("matplotlib", ("bqjax.report", "train.log")),
        ("tyro", ("bqjax.cli", "train")),
        (
            "rich",
            (
                "bqjax.report",
                "bqjax.commands",
                "bqjax.sweep_command",
                "bqjax.tflite_command",
                "bqjax.compare_command",
                "bqjax.budget_command",
                "bqjax.weights_command",
                "bqjax.cli",
                "bqjax.progress",
                "train",
            ),
        ),
        ("constriction", ("bqjax.codec",)),
        ("soundfile", ("bqjax.models", "train.an4")),
        ("jax._src", ()),
        ("pickle", ()),
        ("cloudpickle", ()),
        ("dill", ()),
        ("shelve", ()),
        ("marshal", ()),
    ],
)
def test_a_dependency_stays_where_it_belongs(package, allowed):
    assert [m for m in IMPORTS if uses(m, package) and not within(m, *allowed)] == []


def test_no_pickles_are_read_through_numpy():
    found = [
        f"{path.name}:{node.value.lineno}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", True) is not False
    ]
    assert found == []


def test_there_are_no_assert_statements():
    """`python -O` strips them, so that nothing may depend on one."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_the_scan_sees_every_form_of_import(tmp_path, monkeypatch):
    """The rules above hold only what the scan finds."""
    package = tmp_path / "bqjax" / "search"
    package.mkdir(parents=True)
    source = package / "made_up.py"
    source.write_text(
        "import flax.nnx as n, optax\n"
        "from bqjax import leaves\n"
        "from bqjax.tree import Rule\n"
        "from . import config\n"
        "from ..report.html import x\n"
        "from jax import _src\n"
        "def f():\n"
        "    if True:\n"
        "        from orbax import checkpoint\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imported(source) == {
        "flax.nnx",
        "optax",
        "bqjax.leaves",
        "bqjax.tree",
        "bqjax.search.config",
        "bqjax.report.html",
        "jax",
        "jax._src",
        "orbax",
        "orbax.checkpoint",
    }
