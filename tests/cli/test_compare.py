"""``bqjax compare`` as it is typed: what it writes, prints, keeps and refuses."""

from __future__ import annotations

import ast
import csv
import json
import runpy
from pathlib import Path

import pytest
from command_line import refused, run

from bqjax import codec
from bqjax.experiment import Experiment, load_config
from bqjax.report.experiment import RESULT_NAMES

CONFIG = """
from pathlib import Path

from bqjax.experiment import Experiment
from bqjax.methods import BinAndQuant, GaussianBins, KMeans, SearchConfig
from tiny import tiny_task


class Fragile(KMeans):
    def compress(self, task, **more):
        if Path("stop").exists():
            raise {"stop": KeyboardInterrupt, "break": RuntimeError}[Path("stop").read_text()]("as told")
        return super().compress(task, **more)


SEARCH = SearchConfig(n_bins=2, max_bins=3, max_drop=None, tolerance=None)

config = Experiment(
    task=tiny_task,
    methods=(
        BinAndQuant(search=SEARCH, label="search"),
        BinAndQuant(search=SEARCH, label="same <search> & again"),
        Fragile(k=3, label="k|means, 3"),
        GaussianBins(bins=2, label="bins, 2"),
    ),
)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return "tiny.py"


def test_interrupted_failed_and_whole(config, tmp_path, capsys, scored):
    args = ["compare", "--config", config]
    Path("stop").write_text("stop")
    assert run(*args) == 130
    assert "run the same command again" in capsys.readouterr().err
    out = tmp_path / "out" / "tiny"
    assert [p.name for p in out.iterdir()] == ["rows"]
    assert len(list((out / "rows").glob("*.json"))) == 2
    # Methods of one search share its measurements.
    n_scored = sum(scored)
    assert n_scored > 3 and len(list((out / "rows" / "search").glob("*.jsonl"))) == 1
    scored.clear()

    # A failure ends with an error, when everything else is written.
    Path("stop").write_text("break")
    capsys.readouterr()
    assert run(*args) == 2
    shown = capsys.readouterr()
    assert "1 of 4 rows failed: k|means, 3 (RuntimeError: as told)" in shown.err and shown.err.count("\n") == 1
    assert {p.name for p in out.iterdir()} == {"rows", *RESULT_NAMES}
    lines = {line.split(" | ")[0].strip("| "): line for line in (out / "compare.md").read_text().splitlines() if "|" in line}
    assert "failed" in lines["k\\|means, 3"] and "RuntimeError: as told" in (out / "compare.md").read_text()
    assert sum(scored) == 0  # what was searched was not searched again

    Path("stop").unlink()
    assert run(*args) == 0
    assert "4 rows, 3 of them kept from earlier runs" in capsys.readouterr().out
    assert sum(scored) == 0
    assert not (out / "rows" / "search").exists() and not list((out / "rows").glob("*.error.txt"))

    whole = json.loads((out / "compare.json").read_text())
    assert whole["command"] == "bqjax compare --config tiny.py"
    assert (whole["n_test"], whole["n_calibration"], whole["metric"]) == (210, 60, "accuracy")
    with (out / "compare.csv").open() as file:
        table = list(csv.DictReader(file))
    assert (
        [r["method"] for r in table]
        == [r["method"] for r in whole["rows"]]
        == [
            "search",
            "same <search> & again",
            "k|means, 3",
            "bins, 2",
        ]
    )
    for a, b in zip(table, whole["rows"], strict=True):
        assert float(a["after"]) == b["after"] and int(a["file_bytes"]) == b["file_bytes"]
        file = out / "rows" / b["file"]
        assert file.stat().st_size == b["file_bytes"]
        assert codec.inspect(file).metadata["method"] == b["method"]
    assert whole["rows"][0]["after"] == whole["rows"][1]["after"]
    html = (out / "report.html").read_text()
    assert "same &lt;search&gt; &amp; again" in html and "<svg" in html and "SearchConfig(" in html
    assert "<h2>search: search</h2>" in html and "<h2>Sensitivity of each bin</h2>" in html  # of the first row
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")

    # The same command once more: the same files, whatever was kept.
    before = {name: (out / name).read_bytes() for name in RESULT_NAMES}
    assert run(*args) == 0
    assert {name: (out / name).read_bytes() for name in RESULT_NAMES} == before


@pytest.mark.slow  # three experiments; test_sweep.py holds the same of its state
def test_another_task_needs_force(config, tmp_path, capsys):
    small = CONFIG.replace("BinAndQuant(search", "# BinAndQuant(search")
    (tmp_path / config).write_text(small)
    assert run("compare", "--config", config, "--out", "o") == 0
    old = Path("o/compare.json").read_bytes()
    (tmp_path / config).write_text(small.replace("task=tiny_task", "task=lambda *a: tiny_task(metric='-loss')"))
    assert "holds a comparison on another task: pass --force" in refused(capsys, "compare", "--config", config, "--out", "o")
    assert Path("o/compare.json").read_bytes() == old
    assert run("compare", "--config", config, "--out", "o", "--force") == 0
    assert json.loads(Path("o/compare.json").read_text())["metric"] == "-loss"
    # Results of something else.
    Path("o/compare.json").write_text("mine")
    assert "exists: pass --force" in refused(capsys, "compare", "--config", config, "--out", "o")


@pytest.mark.parametrize(
    ("old", "new", "extra", "message"),
    [
        ("config =", "other =", (), "tiny.py must define `config = Experiment(...)`"),
        ('label="bins, 2"', 'label="search"', (), "two methods are labelled 'search'"),
        ("task=tiny_task,", "task=tiny_task, data='weights/x',", (), "--data is missing: it must name a folder with weights/x"),
        ("", "", ("--out", "tiny.py"), "tiny.py is a file"),
    ],
)
def test_what_cannot_work_is_refused(old, new, extra, message, config, tmp_path, capsys):
    (tmp_path / config).write_text(CONFIG.replace(old, new, 1) if old else CONFIG)
    assert message in refused(capsys, "compare", "--config", config, *extra)
    assert not (tmp_path / "out").exists()


def test_some_of_the_methods(config, capsys):
    assert run("compare", "--config", config, "--out", "o", "--method", "bins, 2", "k*") == 0
    assert [row["method"] for row in json.loads(Path("o/compare.json").read_text())["rows"]] == ["k|means, 3", "bins, 2"]
    assert "no method is labelled 'magic'" in refused(capsys, "compare", "--config", config, "--out", "p", "--method", "magic")


CONFIGS = Path(__file__).parents[2] / "configs"
LOADED = {path.stem: runpy.run_path(str(path))["config"] for path in sorted(CONFIGS.glob("*.py"))}


@pytest.mark.parametrize("name", sorted(name for name, config in LOADED.items() if isinstance(config, Experiment)))
def test_experiments_of_configs_load(name, capsys):
    path = CONFIGS / f"{name}.py"
    config = load_config(path, Experiment)
    if config.data is None:
        assert len(config.methods) > 10
    else:
        for command in ("compare", "compress"):
            assert "--data is missing" in refused(capsys, command, "--config", path)


def test_every_config_is_short_of_imports_and_says_its_command():
    """At most four lines from the library and the training program, and at the top a sentence and the command that runs it."""
    wrong = []
    for path in sorted(CONFIGS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        froms = [node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)]
        if sum(name in ("bqjax", "train") for name in froms) > 4 or f"--config configs/{path.name}" not in ast.get_docstring(tree):
            wrong.append(path.name)
    assert wrong == [] and len(LOADED) > 30
