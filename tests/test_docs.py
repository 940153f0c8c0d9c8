"""The documentation: pages are reached, links lead somewhere, and what is named exists."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from test_imports import FLOORS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TEXTS = [DOCS / page for page in PAGES] + [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.py"))]
# Placeholders of the text.
MADE_UP = {"configs/NETWORK.py", "configs/CONFIG.py", "configs/tflite_MODEL.py", "configs/tflm_MODEL.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """Of the headings, as the site makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def test_every_page_is_in_the_navigation_once():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"(\S+\.md)$", config[config.index("\nnav:") :], re.MULTILINE)
    tutorials = [f"tutorials/{path.stem}.md" for path in (ROOT / "examples").glob("*.py")]
    assert sorted(listed) == sorted([*PAGES, *tutorials])


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_merge_was_left_half_done(path):
    assert re.findall(r"^(?:<{7}|={7}$|>{7}).*", path.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_lead_somewhere(path):
    text = without_code(path.read_text(encoding="utf-8"))
    wrong = []
    for link in re.findall(r"(?<!\w)\[[^\]]*\]\(([^)\s]+)\)", text):  # not norms[0](x) of code
        if re.match(r"https?:", link):
            continue
        page, _, anchor = link.partition("#")
        target = path.parent / page if page else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_paths_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])((?:bqjax|configs|train|benchmarks|tests|examples)/[\w/.]*)", text))
    assert {name for name in named - MADE_UP if not (ROOT / name.rstrip(".")).exists()} == set()


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_names_of_the_library_exist(path):
    text = path.read_text(encoding="utf-8")
    # A dot before or after is that of a file's name: model.bq.safetensors.
    dotted = set(re.findall(r"(?<![\w./'])((?:bqjax|train)(?:\.[a-zA-Z_]\w*)+)(?!\.\w|[/*])", text))
    for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("bqjax", "train"):
                dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert {name for name in dotted if not exists(name)} == set()


def exists(name: str) -> bool:
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(found, part) and part not in getattr(found, "__dataclass_fields__", {}):
                return False
            found = getattr(found, part, None)
        return True
    return False


def test_the_house_is_drawn_as_it_stands():
    """Every room has a line, and stands on the floor that the test of imports holds."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "bqjax").glob("*/__init__.py")}
    assert {room for room in rooms if f"`bqjax/{room}/" not in text} == set()
    drawn = [set(line.replace("/", ".").split()) for line in re.findall(r"^ \d   (.*)$", text, re.MULTILINE)]
    assert drawn[::-1] == [floor - {"_version"} for floor in FLOORS]


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs its packages: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert {"index.html", "tutorials/own_network.html", "results/index.html", "reference/methods.bins.html"} <= set(pages)
    assert 'id="bqjax.methods.bins.search.search_bins"' in pages["reference/methods.bins.html"]
    loads = r"""<(?:link|script|img|iframe|source|object|embed)\b[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>"""
    assert {name: found for name, text in pages.items() if (found := re.findall(loads, text))} == {}
    styles = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")}
    assert {name for name, text in styles.items() if re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text)} == set()
