"""The examples run as a stranger runs them, and what they print is worth reading."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import jax
import pytest

import bqjax

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def output(request, tmp_path, monkeypatch, capsys):
    """What an example prints, run in an empty folder and under JAX's own settings."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(EXAMPLES / f"{request.param}.py"), run_name="__main__")
    return capsys.readouterr().out


def percentages(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(\d+\.\d+)%", text)]


@pytest.mark.parametrize("output", ["own_network"], indirect=True)
def test_own_network(output, tmp_path):
    before, after = percentages(output)
    assert " ± " in output
    assert before > 85
    assert after > before - 3
    path = tmp_path / "out" / "own_network.bq.safetensors"
    assert 4 * 17_258 / path.stat().st_size > 25
    assert {leaf.kind for leaf in bqjax.inspect(path).leaves if leaf.name.endswith("kernel")} <= {"clustered", "scaled"}


@pytest.mark.slow
@pytest.mark.parametrize("output", ["own_language_model"], indirect=True)
def test_own_language_model(output, tmp_path):
    before, after = (float(number) for number in re.findall(r"(\d\.\d{4})", output))
    assert before < 3.2  # of 5.5 for bytes of which nothing is known
    assert after < before + 0.1
    assert float(re.search(r"(\d+\.\d) times", output)[1]) > 6
    assert (tmp_path / "out" / "own_language_model.bq.safetensors").stat().st_size < 60_000


@pytest.mark.parametrize("output", ["gwk_in_optax"], indirect=True)
def test_gwk_in_optax(output, tmp_path):
    *_, trained, clustered, decoded = percentages(output)
    assert min(trained, clustered, decoded) > 80
    assert abs(clustered - decoded) < 3  # between them are the 8 bits of a codebook's numbers
    assert (tmp_path / "out" / "gwk_in_optax.bq.safetensors").stat().st_size < 7_000  # of 76,840


@pytest.mark.parametrize("output", ["own_sweep"], indirect=True)
def test_own_sweep(output):
    lines = output.splitlines()
    table = {line.split()[0]: [float(x) for x in re.findall(r"(-?\d+\.\d+) ±", line)] for line in lines[3:6]}
    assert list(table) == ["first", "second", "head"]
    for drops in table.values():
        assert len(drops) == 5
        assert drops[-1] > 2  # of 40 % dead cells
        assert drops[-1] > drops[0]
    differ, of = map(int, re.match(r"(\d+) of (\d+) rows differ from 0", lines[6]).groups())
    assert 5 < differ <= of == 15
    assert lines[10].startswith("most sensitive: head, ") and lines[10].endswith("1 of the top 1 are settled")
    assert len(re.findall(r"(?m)[+-]\d\.\d{3} ± \d\.\d{3} beyond the sum$", output)) == 3


def test_every_example_is_run():
    assert NAMES == ["gwk_in_optax", "own_language_model", "own_network", "own_sweep"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_needs_few_imports_and_few_lines(name):
    """Four import lines from the library at most, and sixty lines of code."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [getattr(node, "module", None) or node.names[0].name for node in imports]
    assert 1 <= sum(module.split(".")[0] in ("bqjax", "train") for module in modules) <= 4
    assert "train" not in {module.split(".")[0] for module in modules}
    body = text.splitlines()[tree.body[0].end_lineno :]
    assert sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in body) <= 60
