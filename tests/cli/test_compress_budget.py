"""``bqjax compress --plan`` with a budget, as it is typed: the file, the plan that makes it again, resuming and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import refused, run

from bqjax import codec
from bqjax.cli.compress_budget import Budget, parse_size
from bqjax.sensitivity.evaluator import Evaluator

CONFIG = """
from bqjax.core import classification_outputs
from bqjax.experiment import Experiment
from bqjax.methods import BudgetConfig, KMeans
from tiny import forward, tiny_task

config = Experiment(
    task=lambda data_dir, progress: tiny_task(outputs=classification_outputs(forward)),
    methods=(KMeans(k=4),),
    budget=BudgetConfig(bins=(8,), blocks=(), exponents=(-6.0, -2.0), vectors=(8,), draws=2, iterations=5, refine=0),
    coder="ans",
)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return "tiny.py"


def test_a_drop_is_meant_as_tables_show_it():
    budget = Budget(max_drop=0.5)
    assert [budget.drop(metric) for metric in ("accuracy", "-wer", "-nats", "cosine")] == [0.005, 0.005, 0.5, 0.5]


@pytest.mark.slow  # methods/budget/test_plan.py holds the method
def test_a_plan_makes_its_file_again(config, tmp_path, capsys, monkeypatch):
    calls, scores, stop_after = [], Evaluator.scores, 3

    def counting(self, *args, **kwargs):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(args[1])
        return scores(self, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "scores", counting)
    args = [
        "compress",
        "--config",
        config,
        "--target-size",
        "0.9KB",
        "--plan",
        "--out",
        "deep/net.bq.safetensors",
        "--table",
        "t.md",
    ]
    assert run(*args) == 130
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["tiny.budget.jsonl"]
    stop_after = None
    # The very same command goes on; what was measured is not measured again.
    assert run(*args) == 0
    printed = capsys.readouterr().out
    path, plan = tmp_path / "deep" / "net.bq.safetensors", tmp_path / "deep" / "net.plan.py"
    assert 700 < path.stat().st_size <= 900
    assert codec.inspect(path).metadata["method"] == "planned, 0.9KB"
    assert "Plan" in printed and "hidden/kernel" in printed and plan.read_text() in printed
    assert "planned, 0.9KB" in (tmp_path / "t.md").read_text()
    assert f"bqjax {' '.join(args)}" in plan.read_text()

    # The plan is a config: from another folder, with no measurement, the same bytes.
    calls.clear()
    monkeypatch.chdir("deep")
    assert run("compress", "--config", "net.plan.py", "--out", "again") == 0
    assert Path("again").read_bytes() == path.read_bytes() and not calls
    monkeypatch.chdir("..")
    # Another budget of the config finds what was measured.
    small = refused(capsys, "compress", "--config", config, "--target-size", "10", "--plan", "--out", "deep/small")
    assert "no plan fits into 10 bytes: the smallest file that these options reach has " in small and not calls
    for extra, named in ((("--target-size", "900"), "net.bq.safetensors"), (("--max-drop", "1"), "net.bq.safetensors")):
        assert f"{named} exists: pass --force" in refused(capsys, "compress", "--config", config, "--plan", "--out", path, *extra)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--target-size", "10 apples"), "--target-size '10 apples' is no size"),
        (("--target-size", "0"), "less than a byte"),
        (("--max-drop", "-1"), "--max-drop must not be negative, got -1"),
        (("--max-drop", "1", "--target-size", "1KB"), "--target-size cannot go with --max-drop"),
        (("--target-size", "1KB", "--confidence", "0.9"), "--confidence is one of keeping a drop: name it by --max-drop"),
        (("--max-drop", "1", "--bins", "4"), "--bins cannot go with --config"),
        (("--max-drop", "1", "--method", "k-means"), "--method cannot go with --target-size or --max-drop"),
    ],
)
def test_what_cannot_work_is_refused(args, message, config, tmp_path, capsys):
    assert message in refused(capsys, "compress", "--config", config, "--out", "net", *args)
    assert not (tmp_path / "net").exists() and not (tmp_path / "net.plan.py").exists()


def test_weights_without_a_model_have_no_drop(tmp_path, capsys):
    assert "--max-drop cannot go with WEIGHTS" in refused(capsys, "compress", "w.safetensors", "--max-drop", "1")


def test_data_that_is_missing_is_named(capsys):
    spc = Path(__file__).parents[2] / "configs" / "spc.py"
    assert "--data is missing: it must name a folder with weights/spc" in refused(
        capsys, "compress", "--config", spc, "--max-drop", 1
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("200KB", 200_000), ("200kb", 200_000), ("1.5 MiB", 3 * 2**19), ("12_000", 12_000), ("7B", 7), ("2GB", 2 * 10**9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KB", "-3", "1e3", "3 TB", "1,000", "٣KB", "0.4"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="--target-size"):
        parse_size(text)
