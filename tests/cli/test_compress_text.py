"""`bqjax compress FOLDER --text FILE`: no Python is written, and the folder comes back with smaller contents."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_folder
from command_line import refused, run
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from bqjax import codec


@pytest.fixture
def llama(tmp_path):
    (tmp_path / "t.txt").write_text(tiny_folder.text(40))
    return tiny_folder.write(tmp_path / "llama", tiny_folder.LLAMA)


def test_within_a_drop_and_to_a_size(llama, tmp_path, capsys):
    assert run("compress", "llama", "--text", "t.txt", "--max-drop", 0.05, "--table", "t.md", "--report", "r.html") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "calibration: the first 9 sequences" in printed and "few data: 144 tokens" in printed
    out = tmp_path / "llama.bq.safetensors"
    rows = [line.split("|")[1:-1] for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("|")]
    head, original, row = ([cell.strip() for cell in cells] for cells in (rows[0], rows[2], rows[4]))
    assert head[:5] == ["method", "nats", "difference", "agreement %", "file bytes"]
    assert original[0] == "the folder as one file" and row[0] == "rate-distortion, drop 0.05" and "±" in row[2]
    assert int(row[4].replace(",", "")) == out.stat().st_size < int(original[4].replace(",", "")) / 2
    # Searched on the first part: what it gives there is within the drop.
    on_calibration = head.index("on calibration")
    assert float(original[on_calibration]) - float(row[on_calibration]) >= -0.05
    assert "llama: rate-distortion, drop 0.05" in (tmp_path / "r.html").read_text()
    assert run("inspect", out) == 0
    assert "beside the weights: tokenizer.json" in capsys.readouterr().out
    assert run("decompress", out, "--out", "back") == 0
    found = load_file("back/model.safetensors")
    for name, array in tiny_folder.weights(tiny_folder.LLAMA).items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (llama / name).read_bytes()

    size = 5_000
    assert "exists" in refused(capsys, "compress", "llama", "--text", "t.txt", "--target-size", size)
    assert run("compress", "llama", "--text", "t.txt", "--target-size", size, "--force") == 0
    assert 0.9 * size < out.stat().st_size <= size
    assert {leaf.kind for leaf in codec.inspect(out).leaves if len(leaf.shape) > 1} == {"clustered"}


def test_options_that_do_not_go_together(llama, capsys):
    command = "compress", "llama", "--text", "t.txt"
    for args, what in (
        ((), "--text is for a file of a size, or within a drop: name --target-size, or --max-drop 0.02"),
        (("--method", "kmeans", "--max-drop", 0.1), "--method cannot go with --text"),
        (("--max-drop", 0.1, "--target-size", 100), "--target-size cannot go with --max-drop"),
        (("--max-drop", -1), "--max-drop must not be negative"),
        (("--lossless",), "--lossless cannot go with --text"),
    ):
        assert what in refused(capsys, *command, *args)
    assert "--text cannot go with --config" in refused(capsys, "compress", "--config", "c.py", "--text", "t.txt")
    assert "name either WEIGHTS" in refused(capsys, "compress", "--text", "t.txt", "--max-drop", 1)
    assert "no text file absent.txt" in refused(capsys, "compress", "llama", "--text", "absent.txt", "--max-drop", 0.1)
    (llama / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert "llama: the config's model_type is 'mamba'; known are bert" in refused(capsys, *command, "--max-drop", 0.1)
    # What needs no data takes it all the same.
    assert run("compress", "llama", "--coder", "ans") == 0
    assert np.isfinite(codec.inspect("llama.bq.safetensors").file_bytes)


@pytest.mark.slow
@pytest.mark.data
def test_stories_six_times_smaller(data_dir, tmp_path):
    """A trained model, its own tokenizer, a text of sixty stories."""
    folder = data_dir / "lm" / "stories260k"
    given, tokenizer = np.load(folder / "tokens.npz"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    stories = [tokenizer.decode(row[1:n].tolist()) for row, n in zip(given["test"][:60], given["test_length"][:60], strict=True)]
    (tmp_path / "t.txt").write_text("\n<|endoftext|>\n".join(stories))
    size = 174_000
    out = tmp_path / "s.bq.safetensors"
    assert run("compress", folder, "--text", "t.txt", "--target-size", size, "--out", out, "--table", "t.md") == 0
    assert 0.95 * size < out.stat().st_size <= size
    rows = [line.split("|")[1:-1] for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("|")]
    assert float(rows[2][1]) < 1.7  # nats of the original
    assert float(rows[4][2].split("±")[0]) > -0.05
    assert run("decompress", out, "--out", "back") == 0
    original, found = load_file(folder / "model.safetensors"), load_file("back/model.safetensors")
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {name: (x.shape, x.dtype) for name, x in original.items()}
