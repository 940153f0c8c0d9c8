"""The commands, as they are typed: what they write, print and refuse."""

from __future__ import annotations

import re
import sys

import ml_dtypes
import numpy as np
import pytest
from command_line import refused, run

from bqjax import codec, decode
from bqjax.adapters.safetensors import read_weights, write_weights
from bqjax.cli.arguments import main
from bqjax.core.tree import named_leaves

RNG = np.random.default_rng(0)
WEIGHTS = {
    "conv.weight": RNG.normal(size=(8, 9)).astype(np.float32),
    "fc[0].weight": RNG.normal(size=(8, 9)).astype(np.float32),
    "fc[0].bias": RNG.normal(size=8).astype(np.float32),
    "half": RNG.normal(size=(8, 9)).astype(ml_dtypes.bfloat16),
    "mask": np.array([0, -np.inf], np.float32),
    "steps": np.array([[3, 4]], np.int64),
}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, WEIGHTS)
    return path


def kinds(path):
    return {leaf.name: (leaf.kind, leaf.k) for leaf in codec.inspect(path).leaves}


# --- weights without a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gaussian-bins", "kmeans"])
def test_compress_then_decompress(method, weights, tmp_path, capsys):
    original = weights.read_bytes()
    assert run("compress", weights, "--method", method, "--bins", 4) == 0
    path = tmp_path / "w.bq.safetensors"
    printed = capsys.readouterr().out
    assert "left as it was: mask (fewer than two dimensions)" in printed
    assert "left as it was: fc[0].bias (fewer than two dimensions)" in printed
    assert f"{path.stat().st_size:,}" in printed and f"{len(original):,}" in printed
    assert weights.read_bytes() == original

    tree = codec.load(path)
    assert {name for name, (_, k) in kinds(path).items() if k is not None} == {"conv.weight", "fc[0].weight", "half"}
    assert all(k is None or k <= 4 for _, k in kinds(path).values())
    assert run("decompress", path, "--out", tmp_path / "back.safetensors") == 0
    back = read_weights(tmp_path / "back.safetensors")
    assert back.keys() == WEIGHTS.keys()
    for name, leaf in named_leaves(decode(tree)).items():
        assert (back[name].dtype, back[name].shape) == (WEIGHTS[name].dtype, WEIGHTS[name].shape)
        assert back[name].tobytes() == np.asarray(leaf).tobytes(), name
    for name in ("fc[0].bias", "mask", "steps"):
        assert back[name].tobytes() == WEIGHTS[name].tobytes()


def test_lossless(tmp_path, capsys):
    rng = np.random.default_rng(1)
    trained = {name: (rng.normal(size=(300, 70)) * 0.03).astype(ml_dtypes.bfloat16) for name in "ab"}
    write_weights(tmp_path / "large.safetensors", trained | WEIGHTS)
    before = (tmp_path / "large.safetensors").stat().st_size
    assert run("compress", "large.safetensors", "--lossless") == 0
    printed = capsys.readouterr().out
    assert "bit for bit" in printed and "planes" in printed
    assert (tmp_path / "large.bq.safetensors").stat().st_size < 0.7 * before
    assert run("decompress", "large.bq.safetensors", "--out", "back.safetensors") == 0
    back = read_weights("back.safetensors")
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in back.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in (trained | WEIGHTS).items()
    }
    assert "exists: pass --force" in refused(capsys, "compress", "large.safetensors", "--lossless")


def test_the_relative_error_is_that_of_the_compressed_leaves(weights, tmp_path, capsys):
    assert run("compress", weights, "--method", "kmeans", "--bins", 4) == 0
    (shown,) = re.findall(r"Relative error of compressed\s+leaves\s+([\d.]+)\s+%", capsys.readouterr().out)
    decoded, error, power = decode(codec.load(tmp_path / "w.bq.safetensors")), 0.0, 0.0
    for name in ("conv.weight", "fc[0].weight", "half"):
        w = WEIGHTS[name].astype(np.float64)
        error += np.square(np.asarray(decoded[name]).astype(np.float64) - w).sum()
        power += np.square(w).sum()
    assert float(shown) == pytest.approx(100 * np.sqrt(error / power), abs=0.006)


def test_float64_is_compressed_as_float32(tmp_path, capsys):
    write_weights(tmp_path / "w.safetensors", {"w": WEIGHTS["conv.weight"].astype(np.float64), "b": np.ones(2)})
    for method in ("gaussian-bins", "kmeans"):
        assert run("compress", "w.safetensors", "--method", method, "--force") == 0
        assert "from float64 to float32: w" in capsys.readouterr().out
        assert run("decompress", "w.bq.safetensors", "--out", "back.safetensors", "--force") == 0
        back = read_weights("back.safetensors")
        assert (back["w"].dtype, back["b"].dtype) == (np.float32, np.float64)


def test_only_and_skip(weights, tmp_path):
    out = tmp_path / "o"

    def taken(*args):
        assert run("compress", weights, "--out", out, "--force", *args) == 0
        return {name for name, (_, k) in kinds(out).items() if k is not None}

    assert taken("--only", "conv*", "fc*bias") == {"conv.weight", "fc[0].bias"}
    # Names with brackets stay names, not patterns.
    assert taken("--skip", "conv*") == {"fc[0].weight", "half"}
    assert taken("--skip", "conv*", "half") == {"fc[0].weight"}
    assert taken("--only", "*weight", "--skip", "conv*") == {"fc[0].weight"}


def test_coder_and_sigma_scale_reach_the_file(weights, tmp_path):
    assert run("compress", weights, "--coder", "huffman", "--method", "gaussian-bins", "--bins", 8) == 0
    coders = {leaf.coder for leaf in codec.inspect("w.bq.safetensors").leaves if leaf.k}
    assert coders == {"huffman"}
    assert run("compress", weights, "--out", "wide", "--method", "gaussian-bins", "--sigma-scale", 3, "--bins", 8) == 0
    narrow, wide = (codec.load(p)["conv.weight"] for p in ("w.bq.safetensors", "wide"))
    # Wider bins: more weights share the one in the middle.
    assert np.bincount(wide.indices).max() > np.bincount(narrow.indices).max()


def test_existing_files_need_force(weights, tmp_path, capsys):
    out = tmp_path / "w.bq.safetensors"
    out.write_bytes(b"mine")
    assert "w.bq.safetensors exists: pass --force" in refused(capsys, "compress", weights)
    assert out.read_bytes() == b"mine"
    assert run("compress", weights, "--force") == 0
    back = tmp_path / "back"
    back.write_bytes(b"mine")
    assert "--force" in refused(capsys, "decompress", out, "--out", back)
    assert back.read_bytes() == b"mine"
    assert run("decompress", out, "--out", back, "--force") == 0


def test_the_input_is_never_overwritten(weights, capsys):
    before = weights.read_bytes()
    assert "is the file that is read" in refused(capsys, "compress", weights, "--out", weights, "--force")
    assert weights.read_bytes() == before
    assert run("compress", weights) == 0
    assert "is the file that is read" in refused(capsys, "decompress", "w.bq.safetensors", "--out", "w.bq.safetensors", "--force")


def test_inspect(tmp_path, capsys):
    # Names and notes that a terminal library could take for colours or emoji.
    tree = {"[red]w[/]": WEIGHTS["conv.weight"], ":warning:": np.zeros((), np.int8), "[/b]": WEIGHTS["half"]}
    codec.save(tmp_path / "f", tree, metadata={"note": "[bold] :smile: [/x]"})
    assert run("inspect", "f") == 0
    printed = capsys.readouterr().out
    for text in (
        "[red]w[/]",
        ":warning:",
        "[/b]",
        "note: [bold] :smile: [/x]",
        "bfloat16",
        "8x9",
        "scalar",
        "structure and header",
    ):
        assert text in printed
    assert f"{(tmp_path / 'f').stat().st_size:,}" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("compress", "absent.safetensors"), "no file absent.safetensors"),
        (("compress", "text"), "text is not a safetensors file"),
        (("compress",), "name either WEIGHTS.safetensors or --config FILE"),
        (("compress", "w.safetensors", "--config", "c.py"), "name either WEIGHTS.safetensors or --config FILE"),
        (("compress", "w.safetensors", "--bins", "0", "--method", "gaussian-bins"), "n_bins must be at least 1, got 0"),
        (("compress", "w.safetensors", "--bins", "0", "--method", "kmeans"), "k must be an integer of at least 1, got 0"),
        (
            ("compress", "w.safetensors", "--method", "gaussian-bins", "--sigma-scale", "-1"),
            "sigma_scale must be positive and finite, got -1.0",
        ),
        (("compress", "w.safetensors", "--only", "cnv.weight"), "rule 'cnv.weight' matches no leaf; did you mean 'conv.weight'"),
        (("compress", "w.safetensors", "--skip", "cnv.*"), "rule 'cnv.*' matches no leaf"),
        (("compress", "w.safetensors", "--only", "steps"), "leaf 'steps', which cannot be compressed: int64"),
        (("compress", "w.safetensors", "--only", "mask"), "leaf 'mask' holds 1 NaN or infinite values of 2"),
        (("compress", "w.safetensors", "--skip", "*"), "nothing is left to compress: '*' skip every leaf"),
        (("compress", "w.safetensors", "--report", "r.html", "--table", "t.md"), "--report, --table cannot go with WEIGHTS"),
        (("compress", "w.safetensors", "--max-drop", "1"), "whose accuracy nothing measures: bound each leaf's error by --rtol"),
        (("decompress", "nothing", "--out", "o"), "no file nothing"),
        (("compress", "w.safetensors", "--lossless", "--bins", "4"), "--bins cannot go with --lossless"),
        (("compress", "w.safetensors", "--bins", "8"), "--bins is a setting of --method kmeans or gaussian-bins, not of even"),
        (("compress", "w.safetensors", "--lmbda", "1", "--method", "int8"), "--lmbda is a setting of --method even, not of int8"),
        (("compress", "w.safetensors", "--rtol", "2"), "rtol must be a relative error between 0 and 1, got 2.0"),
        (("compress", "w.safetensors", "--target-size", "1KB", "--method", "pq"), "--target-size chooses the error of even levels"),
        (("compress", "w.safetensors", "--target-size", "much"), "--target-size 'much' is no size"),
        (("compress", "w.safetensors", "--target-size", "10"), "no file of at most 10 bytes was found"),
        (("compress", "w.safetensors", "--method", "magic"), "--method 'magic': weights without a model are compressed by"),
        (("compress", "--config", "nothing.py", "--bins", "4"), "--bins cannot go with --config"),
        (("compress", "--config", "absent.py"), "no config file absent.py"),
        (("compress", "--config", "nothing.py"), "nothing.py must define `config = Experiment(...)`"),
        (("decompress", "absent", "--out", "o"), "absent"),
        (("decompress", "w.safetensors", "--out", "o"), "w.safetensors: "),
        (("inspect", "text"), "text: "),
        (("inspect", "absent"), "absent"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_errors_are_one_line(args, message, weights, tmp_path, capsys):
    (tmp_path / "text").write_text("hello\n" * 9)
    (tmp_path / "nothing.py").write_text("configuration = 1\n")
    files = set(tmp_path.iterdir())
    assert message in refused(capsys, *args)
    # Nothing is left behind.
    assert set(tmp_path.iterdir()) == files


def test_unknown_options_and_values_are_refused(weights, capsys):
    for args in (("compress", weights, "--coder", "magic"), ("compress", weights, "--bin", "4"), ("explode",), ("decompress",)):
        with pytest.raises(SystemExit) as stop:
            run(*args)
        assert stop.value.code == 2


# --- experiments --------------------------------------------------------------------------------------------------------

CONFIG = """
from pathlib import Path

from bqjax import Rule
from bqjax.experiment import Experiment
from bqjax.methods import BinAndQuant, KMeans, SearchConfig
from tiny import tiny_task

FLAG = Path(__file__).with_name("stop")


class Search(BinAndQuant):
    def compress(self, task, *, key, state_path=None, progress=None):
        def stopping(done, total, message):
            if done and FLAG.exists() and FLAG.read_text() == self.label:
                raise KeyboardInterrupt

        return super().compress(task, key=key, state_path=state_path, progress=stopping)


SEARCH = SearchConfig(n_bins=2, max_bins=4, max_drop=None, tolerance=None)

config = Experiment(
    task=tiny_task,
    methods=(
        Search(search=SEARCH, rules=(Rule("head/*"),), label="first"),
        KMeans(k=4, label="k|means"),
        KMeans(k=5, label="k-5"),
    ),
)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return "tiny.py"


def test_an_experiment_whole_and_interrupted(config, tmp_path, capsys, scored):
    args = ["compress", "--config", config, "--report", "page.html", "--table", "table.md"]
    assert run(*args) == 0
    whole = sum(scored)
    # Without --out the file is named after the config.
    path = tmp_path / "out" / "tiny.bq.safetensors"
    assert codec.inspect(path).metadata == {"task": "tiny <network> & co", "method": "first"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no state, no scratch
    printed = capsys.readouterr().out
    for text in ("float32", "zstd -19 (lossless)", "first"):
        assert text in printed
    assert "k|means" not in printed  # the first method alone
    assert f"{path.stat().st_size:,}" in printed
    table = (tmp_path / "table.md").read_text()
    # The command that made it, whatever program called it.
    assert table.startswith(f"`bqjax {' '.join(args)}`\n\n")
    assert f"| {path.stat().st_size:,} |" in table
    page = (tmp_path / "page.html").read_text()
    assert "<code>bqjax compress --config tiny.py" in page and "<h2>first: search</h2>" in page
    for extra in ((), ("--report", "page.html", "--out", "new")):
        assert "exists: pass --force" in refused(capsys, "compress", "--config", config, *extra)

    # Interrupted, it leaves what it measured and the file that was there.
    scored.clear()
    args = ["compress", "--config", config, "--out", "again/net"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "net").write_bytes(b"old")
    (tmp_path / "stop").write_text("first")
    assert run(*args, "--force") == 130
    assert capsys.readouterr().err == "bqjax: interrupted; run the same command again to go on\n"
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["net", "net.search"]
    assert (tmp_path / "again" / "net").read_bytes() == b"old"
    (state,) = (tmp_path / "again" / "net.search").iterdir()
    assert state.suffix == ".jsonl" and len(state.read_bytes().splitlines()) > 3
    (tmp_path / "stop").unlink()
    (tmp_path / "again" / "net").unlink()
    # The very same command: no --force.
    assert run(*args) == 0
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["net"]
    assert (tmp_path / "again" / "net").read_bytes() == path.read_bytes()
    # Nothing that was measured is measured again.
    assert sum(scored) == whole > 5


def test_another_method_of_a_config_by_its_label(config, tmp_path, capsys):
    assert run("compress", "--config", config, "--out", "net", "--method", "k|means") == 0
    assert codec.inspect("net").metadata["method"] == "k|means"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "tiny.py"]
    capsys.readouterr()
    for label, message in (("magic", "no method is labelled 'magic', only 'first'"), ("k*", "--method 'k*' names 2 methods")):
        assert message in refused(capsys, "compress", "--config", config, "--out", "other", "--method", label)


def test_the_command_of_this_process_is_the_default(weights, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bqjax", "compress", str(weights), "--rtol", "0.2"])
    assert main() == 0
    assert codec.load("w.bq.safetensors")["conv.weight"].bits == 3
