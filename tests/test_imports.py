"""Imports point one way: each module may use those of lower layers, and heavy dependencies stay where they belong."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. A room may use rooms of lower floors, never its neighbours or what is above.
FLOORS = [
    {"_version", "core", "quantizers"},
    {"codec", "kmeans", "sensitivity", "methods.base"},
    {"adapters", "methods.baselines", "methods.bins", "methods.gwk", "methods.rate_distortion"},
    {"methods.budget", "models", "tflite"},
    {"experiment"},
    {"report"},
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


def room(module: str) -> str:
    """The room that a module stands in: a package of the library, or of its methods."""
    parts = module.removeprefix("bqjax").removeprefix(".").split(".")
    return ".".join(parts[:2]) if parts[0] == "methods" else parts[0]


IMPORTS = {module_name(p): imported(p) for p in files()}
LEVEL = {name: i for i, floor in enumerate(FLOORS) for name in floor}
FACES = {"", "__main__", "methods"}  # they only hand names on


def uses(module: str, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in IMPORTS[module])


def within(module: str, *packages: str) -> bool:
    return any(module == p or module.startswith(p + ".") for p in packages)


def test_every_room_has_a_floor():
    assert {room(m) for m in IMPORTS if within(m, "bqjax")} - FACES == set(LEVEL)


def test_imports_point_downwards():
    wrong = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, "bqjax") and room(module) not in FACES
        for name in names
        if within(name, "bqjax")
        and (room(name) in FACES or (room(name) != room(module) and LEVEL[room(name)] >= LEVEL[room(module)]))
    ]
    assert wrong == []


def test_the_hall_has_four_doors():
    assert sorted(p.name for p in (ROOT / "bqjax").glob("*.py*")) == ["__init__.py", "__main__.py", "_version.py"]


def test_every_package_has_a_face():
    """A sentence on what lives there, and public names that are no modules' names."""
    wrong = []
    for path in files():
        if path.name != "__init__.py":
            continue
        module = importlib.import_module(module_name(path))
        if not (module.__doc__ or "").strip():
            wrong.append(f"{module.__name__} has no docstring")
        names = getattr(module, "__all__", [])
        modules = {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
        wrong += [f"{module.__name__}.{name} is a module's name" for name in names if name in modules]
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
    allowed = {"codec", "core"}
    used = {
        f"{m} -> {n}"
        for m in IMPORTS
        if within(m, "bqjax.codec")
        for n in IMPORTS[m]
        if within(n, "bqjax") and room(n) not in allowed
    }
    assert used == set()


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("flax", ("bqjax.adapters", "bqjax.models", "train")),
        ("optax", ("bqjax.adapters", "bqjax.models", "train")),
        ("orbax", ("bqjax.adapters.orbax", "train")),
        ("tokenizers", ("bqjax.models.transformer.text", "train")),
        ("tensorflow_datasets", ("train",)),
        ("tensorflow", ()),
        ("sklearn", ("train",)),
        ("matplotlib", ("bqjax.report", "train.log")),
        ("tyro", ("bqjax.cli", "train")),
        ("rich", ("bqjax.report", "bqjax.cli", "train")),
        ("constriction", ("bqjax.codec",)),
        ("soundfile", ("train",)),
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
    package = tmp_path / "bqjax" / "core"
    package.mkdir(parents=True)
    source = package / "made_up.py"
    source.write_text(
        "import flax.nnx as n, optax\n"
        "from bqjax.core import leaves\n"
        "from bqjax.core.tree import Rule\n"
        "from . import files\n"
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
        "bqjax.core.leaves",
        "bqjax.core.tree",
        "bqjax.core.files",
        "bqjax.report.html",
        "jax",
        "jax._src",
        "orbax",
        "orbax.checkpoint",
    }
