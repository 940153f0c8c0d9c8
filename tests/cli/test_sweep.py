"""``bqjax sweep`` as it is typed: what it writes, prints, resumes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused, run

from bqjax.experiment import RandomAgainstGradient, RelativeBySize, SweepConfig
from bqjax.report.sweep import result_names
from bqjax.sensitivity.evaluator import Evaluator

CONFIG = """
from tiny import tiny_task

from bqjax.experiment import BinsByLayer, RandomAgainstGradient, RelativeBySize, SweepConfig
from bqjax.core import Rule

config = SweepConfig(
    task=tiny_task,
    figures=(RelativeBySize(magnitude=0.3, draws=2), RandomAgainstGradient(sigma=0.3, draws=3, largest=1)),
    split="test",
)
"""
# Most of the time of a sweep here goes into compiling.
ONE = CONFIG.replace("draws=2)", "draws=2, largest=1)").replace(" RandomAgainstGradient(sigma=0.3, draws=3, largest=1)", "")
NAMES = result_names(SweepConfig(task=None, figures=(RelativeBySize(), RandomAgainstGradient())))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return "tiny.py"


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_existing_results_need_force(config, capsys):
    Path(config).write_text(ONE)
    args = ["sweep", "--config", config, "--out", "results", "--examples", 20]
    assert run(*args) == 0
    first = contents("results")
    assert "pass --force" in refused(capsys, *args)
    assert contents("results") == first
    assert run(*args, "--force") == 0
    assert json.loads(contents("results")["sweep.json"])["n_examples"] == 20
    # One file of another sweep is enough.
    Path("other").mkdir()
    Path("other/sweep.csv").write_text("mine")
    assert "other/sweep.csv exists: pass --force" in refused(capsys, "sweep", "--config", config, "--out", "other")
    # What a sweep does not write is not in its way.
    Path("third").mkdir()
    Path("third/notes.txt").write_text("mine")
    assert run("sweep", "--config", config, "--out", "third", "--examples", 20) == 0


def test_an_interrupted_sweep_and_one_that_is_not(config, capsys, monkeypatch):
    calls, scores, stop_after = [], Evaluator.measure, 2

    def counting(self, *args, **kwargs):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(args[1])
        return scores(self, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "measure", counting)
    # Without --out the folder is named after the config.
    assert run("sweep", "--config", config) == 130
    assert "run the same command again" in capsys.readouterr().err
    left = contents("out/tiny")
    assert len(left) == 2 and all(name.startswith("sweep.state.jsonl") for name in left)

    # The very same command: no --force.
    stop_after = None
    assert run("sweep", "--config", config) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "hidden/kernel",
        "head/kernel",
        "largest gradient",
        "of 1 layers",
        "2 standard errors",
        "s left",
        "210",
        "report.html",
    ):
        assert text in printed
    assert "by an earlier run" in printed
    resumed, n_calls = contents("out/tiny"), len(calls)
    assert sorted(resumed) == sorted(NAMES)  # no state is left
    assert json.loads(resumed["sweep.json"])["command"] == "bqjax sweep --config tiny.py"
    calls.clear()
    assert run("sweep", "--config", config, "--force") == 0
    assert len(calls) == n_calls  # nothing that was measured was measured again
    for name, content in contents("out/tiny").items():
        assert content.replace(b" --force", b"") == resumed[name], name


def test_a_race_says_how_it_ended(config, capsys):
    Path(config).write_text(ONE.replace(", largest=1)", ")"))
    assert run("sweep", "--config", config, "--until", "top1", "--confidence", "0.9") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Race until top1 at 90 %" in printed and "% of the full sweep's 4" in printed
    race = json.loads(contents("out/tiny")["sweep.json"])["race"]
    assert race["until"] == "top1" and race["of"] == 4 and len(race["order"][0]) == 2
    for args, message in (
        (("--until", "best"), "until 'rank', 'top10'"),
        (("--until", "top9"), "the top 9 of 2 candidates is no question"),
        (("--until", "rank", "--confidence", "95"), "--confidence must be between 0 and 1"),
        (("--until", "rank", "--tolerance", "-1"), "--tolerance must be finite and not negative"),
        (("--until", "top1", "--budget", "0.01"), "pass budget="),
        (("--until", "rank", "--budget", "0.2"), "--budget goes with --until top10"),
        (("--budget", "0.2"), "--budget goes with --until top10"),
        (("--predict",), "has no outputs, which the curvature of its weights is taken from"),
        (("--max-drop", "0"), "--max-drop must be positive"),
    ):
        assert message in refused(capsys, "sweep", "--config", config, "--out", "other", *args)


def test_a_race_within_a_budget_says_how_sure_it_is(config, capsys):
    Path(config).write_text(ONE.replace(", largest=1)", ")").replace("draws=2", "draws=64"))
    args = ("sweep", "--config", config, "--until", "top1", "--budget", "0.5")
    assert run(*args) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Race for the top1 within 50 % of the full sweep:" in printed and "of the 1 layers in the top" in printed
    race = json.loads(contents("out/tiny")["sweep.json"])["race"]
    assert race["budget"] == 0.5 and len(race["sure"]) == 2 and all(0 <= sure <= 1 for _, _, sure in race["sure"])
    assert b"<h2>Race</h2>" in contents("out/tiny")["report.html"]


def test_the_state_belongs_to_one_sweep(config, capsys, monkeypatch):
    monkeypatch.setattr(Evaluator, "measure", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("sweep", "--config", config, "--out", "results") == 130
    assert "belongs to another run (batches changed)" in refused(
        capsys, "sweep", "--config", config, "--out", "results", "--examples", "9"
    )


@pytest.mark.parametrize(
    ("old", "new", "extra", "message"),
    [
        ("draws=2", "draws=2, rules=(Rule('conv*'),)", (), "rule 'conv*' matches no leaf"),
        (
            "split=",
            "data='weights/x.safetensors', split=",
            (),
            "--data is missing: it must name a folder with weights/x.safetensors",
        ),
        ("config =", "other =", (), "tiny.py must define `config = SweepConfig(...)`"),
        ("draws=3", "draws=3, name='relative_by_size'", (), "two figures are named 'relative_by_size'"),
        ("", "", ("--examples", "0"), "--examples must be at least 1"),
        ("", "", ("--out", "tiny.py"), "tiny.py is a file"),
    ],
)
def test_what_cannot_work_is_refused(old, new, extra, message, config, tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG.replace(old, new, 1) if old else CONFIG)
    assert message in refused(capsys, "sweep", "--config", config, *extra)
    assert not list(tmp_path.glob("out/**/*.png"))


def test_a_missing_data_folder_is_named(tmp_path, capsys):
    config = Path(__file__).parents[2] / "configs" / "resnet20_sensitivity.py"
    assert "nowhere" in refused(capsys, "sweep", "--config", config, "--data", "nowhere")
    assert not (tmp_path / "out").exists()
