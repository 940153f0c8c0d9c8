"""Pages of the documentation site that are made when it is built (a hook of mkdocs, see mkdocs.yml).

- ``tutorials/NAME.md`` from ``examples/NAME.py``: whole-line comments at the margin are the text, what is between them is code.
- ``reference/ROOM.md`` for each room of ``bqjax/``, in the order of its floors, from the docstrings.

Pages link to examples and rooms as to files and folders, which works where the sources are read; on the site the links go to the
pages made from them.

:class:`Docstrings` is an extension of griffe, which reads the sources: it turns the roles of Sphinx (``:func:`save```), which the
docstrings have for editors and other tools, into links.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "bqjax"


# Tutorials


def tutorial(source: str) -> str:
    """An example as Markdown."""
    lines = source.splitlines()
    docstring = ast.get_docstring(ast.parse(source)) or ""
    title, _, introduction = docstring.partition("\n")
    start = ast.parse(source).body[0].end_lineno or 0
    parts: list[tuple[bool, list[str]]] = []
    for line in lines[start:]:
        is_text = line.startswith("#")
        if line.strip() and (not parts or parts[-1][0] != is_text):
            parts.append((is_text, []))
        if parts:
            parts[-1][1].append(line.removeprefix("#").removeprefix(" ") if is_text else line)
    page = [f"# {title.rstrip('.')}", introduction.strip()]
    for is_text, body in parts:
        text = "\n".join(body).strip("\n")
        page.append(text if is_text else f"```python\n{text}\n```")
    return "\n\n".join(page) + "\n"


# The reference


def floors() -> list[list[str]]:
    """The rooms of each floor from the ground up, as the test of imports holds them."""
    tree = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FLOORS":
            return [sorted(floor - {"_version"}) for floor in ast.literal_eval(node.value)]
    raise ValueError("tests/test_imports.py assigns no FLOORS")


def modules_of(room: str) -> list[str]:
    """Dotted names of a room's modules that have public names: its face first, packages within it after its modules."""
    if not room:
        return [PACKAGE]
    base = ROOT / PACKAGE / room.replace(".", "/")
    if base.with_suffix(".py").exists():  # methods.base, beside which methods' face stands
        return [f"{PACKAGE}.{room.rpartition('.')[0]}", f"{PACKAGE}.{room}"]
    found = [base / "__init__.py"]
    for folder in (base, *sorted(p.parent for p in base.rglob("__init__.py") if p.parent != base)):
        found += sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
    return [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in found]


def public_names(package: griffe.Module) -> str:
    """The names that a face hands on, as a table with links to where they are described."""
    rows = []
    for name in package.exports or ():
        found = package[str(name)]
        target = found.final_target if found.is_alias else found
        summary = target.docstring.value.partition("\n")[0] if target.docstring else ""
        shown = f"[`{name}`][{target.path}]" if summary else f"`{name}`"
        rows.append(f"| {shown} | {_ROLE.sub(lambda m: f'`{_shown(m)}`', summary)} |")
    return "\n".join(["| | |", "| --- | --- |", *rows]) if rows else ""


def room_page(room: str, library: griffe.Module) -> str:
    """The reference of one room: what its face says and hands on, then module by module."""
    face, *others = modules_of(room)
    package = library[face.removeprefix(f"{PACKAGE}.")] if room else library
    page = [f"::: {face}\n    options: {{show_root_full_path: true, heading_level: 1, members: false}}", public_names(package)]
    page += [f"::: {module}\n    options: {{show_root_full_path: true, heading_level: 2}}" for module in others]
    return "\n\n".join(page) + "\n"


def room_title(room: str) -> str:
    return room.removeprefix("methods.") if room != "methods.base" else "methods"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference to the navigation."""
    pages: list[Any] = [{PACKAGE: f"reference/{PACKAGE}.md"}]
    for number, floor in enumerate(floors(), 1):
        pages.append({f"Floor {number}": [{room_title(room): f"reference/{room}.md"} for room in floor]})
    config.nav.append({"Reference": pages})  # type: ignore[union-attr]
    return config


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Links to examples and rooms as links to the pages made from them."""
    markdown = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](tutorials/\1.md)", markdown)
    return re.sub(r"\]\(\.\./bqjax/([\w/]+?)(?:/|\.py)\)", lambda m: f"](reference/{m[1].replace('/', '.')}.md)", markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    made = {f"tutorials/{path.stem}.md": tutorial(path.read_text(encoding="utf-8")) for path in (ROOT / "examples").glob("*.py")}
    library = griffe.load(PACKAGE, search_paths=[ROOT])
    made |= {f"reference/{room or PACKAGE}.md": room_page(room, library) for floor in [[""], *floors()] for room in floor}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


# Docstrings

_ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|obj):`(~?)([\w.]+)`")


class Docstrings(griffe.Extension):
    """Docstrings as Markdown: roles become links, and literal blocks lose their second colon."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self._visit(pkg, set())

    def _visit(self, thing: griffe.Object, seen: set[str]) -> None:
        if thing.path in seen:
            return
        seen.add(thing.path)
        if thing.docstring:
            text = _ROLE.sub(lambda match: _link(thing, match), thing.docstring.value)
            text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
            text = re.sub(r"::\n\n", ":\n\n", text)
            thing.docstring.value = re.sub(r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE | re.DOTALL)
        for member in thing.members.values():
            if not member.is_alias:
                self._visit(member, seen)  # type: ignore[arg-type]


def _shown(role: re.Match[str]) -> str:
    short, name = role.groups()
    return name.rpartition(".")[2] if short else name


def _link(thing: griffe.Object, role: re.Match[str]) -> str:
    name = role[2]
    try:
        found = thing.modules_collection[name if name.startswith(f"{PACKAGE}.") else thing.resolve(name)]
        target = found.final_target if found.is_alias else found
    except (KeyError, griffe.GriffeError):
        return f"`{_shown(role)}`"  # of another package
    return f"[`{_shown(role)}`][{target.path}]" if target.docstring else f"`{_shown(role)}`"
