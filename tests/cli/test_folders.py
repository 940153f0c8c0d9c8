"""A folder on the command line: into one file and back, and what of it is no use."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
from command_line import refused, run
from safetensors.numpy import load_file, save_file

from bqjax import codec

W = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "llama"
    path.mkdir()
    for i, shard in enumerate(SHARDS):
        save_file({f"w{i}": W + i, f"n{i}": np.ones(64, np.float16)}, path / shard, {"format": "pt"})
    shards = {f"{kind}{i}": shard for i, shard in enumerate(SHARDS) for kind in "wn"}
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": shards}))
    (path / "config.json").write_text('{"torch_dtype": "float32"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "notes.md").write_text("mine")
    return path


@pytest.mark.parametrize("how", [("--coder", "ans"), ("--lossless",)])
def test_there_and_back(how, folder, tmp_path, capsys):
    assert run("compress", folder, *how) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "All sizes are with config.json, tokenizer.json." in text
    assert "not in the file: notes.md (loading the model does not take it)" in text
    size = sum(p.stat().st_size for p in folder.iterdir() if p.name not in ("notes.md", INDEX))
    assert f"{size:,}" in text
    assert run("inspect", "llama.bq.safetensors") == 0
    text = capsys.readouterr().out
    assert "beside the weights: config.json, 26 bytes" in text and f"shards: 2, {SHARDS[0]} to {SHARDS[1]}" in text
    assert "content" not in text
    assert run("decompress", "llama.bq.safetensors", "--out", "back") == 0
    assert (
        f"4 tensors, {sum(p.stat().st_size for p in (tmp_path / 'back').iterdir()):,} bytes in 5 files" in capsys.readouterr().out
    )
    assert {p.name for p in (tmp_path / "back").iterdir()} == {p.name for p in folder.iterdir()} - {"notes.md"}
    found = load_file("back/" + SHARDS[1])
    assert found["n1"].dtype == np.float16 and found["w1"].dtype == np.float32
    assert np.linalg.norm(found["w1"] - W - 1) <= 0.05 * np.linalg.norm(W + 1)
    # Into the same place only where it is asked for; and as one file.
    assert "exists and is not empty" in refused(capsys, "decompress", "llama.bq.safetensors", "--out", "back")
    assert run("decompress", "llama.bq.safetensors", "--out", "back", "--dtype", "bfloat16", "--force") == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {"torch_dtype": "bfloat16"}
    assert run("decompress", "llama.bq.safetensors", "--out", "one.safetensors") == 0
    assert load_file("one.safetensors").keys() == {"w0", "n0", "w1", "n1"}


def test_a_target_size_is_that_of_the_whole_file(folder, tmp_path):
    (folder / "vocab.txt").write_bytes(np.random.default_rng(0).bytes(3000))
    assert run("compress", folder, "--target-size", "8KB", "--coder", "ans") == 0
    assert 7_000 < (tmp_path / "llama.bq.safetensors").stat().st_size <= 8_000


def test_an_orbax_checkpoint(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "saved", {"params": {"kernel": W, "bias": W[0]}, "step": np.int32(3)})
    assert run("compress", "saved", "--coder", "ans") == 0
    kinds = {leaf.name: leaf.kind for leaf in codec.inspect("saved.bq.safetensors").leaves}
    assert kinds == {"params/kernel": "affine", "params/bias": "array", "step": "array"}
    assert run("decompress", "saved.bq.safetensors", "--out", "back.safetensors") == 0
    np.testing.assert_array_equal(load_file("back.safetensors")["params/bias"], W[0])


def test_folders_that_are_no_use(folder, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    assert "old holds no .safetensors file" in refused(capsys, "compress", "old")
    with zipfile.ZipFile(tmp_path / "old" / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    said = refused(capsys, "compress", "old")
    assert "pytorch_model.bin is a PyTorch file" in said
    assert "safetensors.torch.save_file(torch.load(FILE, weights_only=True)" in said
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))
    assert "pytorch_model.bin is a Python pickle" in refused(capsys, "compress", "old")
    (folder / SHARDS[1]).unlink()
    assert f"names 2 shards, of which 1 are missing: {SHARDS[1]}" in refused(capsys, "compress", folder)
    save_file({"other": W}, folder / SHARDS[1])
    assert f"{SHARDS[1]} lacks 2 tensors that {INDEX} says it holds: n1, w1" in refused(capsys, "compress", folder)
