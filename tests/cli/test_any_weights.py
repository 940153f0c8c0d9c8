"""Files as people bring them: whatever safetensors can hold goes through `compress` and `decompress`, and nothing of it is lost."""

from __future__ import annotations

import io
import math
import time

import hypothesis
import numpy as np
import pytest
from any_safetensors import BITS, COMPRESSIBLE, File, Tensor, files, parsed
from command_line import refused, run
from rich.console import Console

from bqjax import codec
from bqjax.adapters.safetensors import open_weights, write_weights
from bqjax.cli import compress_weights as weights_command
from bqjax.cli.compress_weights import compress_weights
from bqjax.cli.files import decompress
from bqjax.cli.weights_methods import WeightMethod
from bqjax.core.rules import Rule, select

W = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
SETTINGS = hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    deadline=None,
    max_examples=20,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)


@pytest.fixture(autouse=True)
def no_thorough_zstd(monkeypatch):
    monkeypatch.setattr(weights_command, "_THOROUGH_BYTES", 0)


def through(path, file, **options):
    """Compresses and decompresses a file; what comes back, and what was printed."""
    source, small, back = path / "w.safetensors", path / "w.bq", path / "back"
    source.write_bytes(file.to_bytes())
    shown = io.StringIO()
    common = {"method": WeightMethod(name="kmeans", bins=4), "coder": "raw", "force": True}
    compress_weights(source, small, console=Console(file=shown, width=500), **(common | options))
    decompress(small, back, force=True, console=Console(quiet=True))
    return parsed(back.read_bytes()), shown.getvalue()


@SETTINGS
@hypothesis.given(file=files())
def test_nothing_is_lost(file, tmp_path):
    back, printed = through(tmp_path, file)
    assert back.tensors.keys() == file.tensors.keys()
    assert back.metadata == file.metadata
    compressed = {leaf.name for leaf in codec.inspect(tmp_path / "w.bq").leaves if leaf.kind != "array"}
    assert compressed
    for name, tensor in file.tensors.items():
        if name in compressed:
            assert tensor.dtype in COMPRESSIBLE and len(tensor.shape) > 1 and math.prod(tensor.shape)
            dtype = "F32" if tensor.dtype == "F64" else tensor.dtype
            assert back.tensors[name][:2] == (dtype, tensor.shape), name
        else:
            assert back.tensors[name] == tensor, name
            assert f"left as it was: {name} (" in printed or not name.isprintable(), name


@pytest.mark.parametrize("dtype", sorted(set(BITS) - set(COMPRESSIBLE)))
def test_a_dtype_that_is_not_compressed_blocks_nothing(dtype, tmp_path):
    other = Tensor(dtype, (4, 4), bytes(range(256))[: 16 * BITS[dtype] // 8] if dtype != "BOOL" else bytes([0, 1] * 8))
    file = File({"w": Tensor("F32", (8, 6), W.tobytes()), "other": other}, {"format": "pt"})
    for options in ({}, {"skip": ["other"]}, {"only": ["w"]}):
        back, printed = through(tmp_path, file, **options)
        assert back.tensors["other"] == other
        assert back.metadata == {"format": "pt"}
        assert "left as it was: other (" in printed


def test_a_rule_for_a_dtype_that_cannot_be_compressed_names_the_leaf(tmp_path):
    for dtype in ("F8_E4M3", "F4"):
        file = File({"w": Tensor("F32", (8, 6), W.tobytes()), "small": Tensor(dtype, (2, 4), bytes(BITS[dtype]))}, {})
        with pytest.raises(
            ValueError, match=f"leaf 'small', which cannot be compressed: float{BITS[dtype]}.* bits already: convert it"
        ):
            through(tmp_path, file, only=["small"])


def test_skipping_takes_no_longer_with_many_leaves(tmp_path):
    """20,000 leaves used to take minutes: a rule for each that was kept, matched against all."""
    names = [f"layers.{i // 7}.blocks[{i % 7}].w" for i in range(20_000)]
    write_weights(tmp_path / "w", dict.fromkeys(names, np.zeros((1, 1), np.float16)))
    tensors = open_weights(tmp_path / "w")
    start = time.process_time()
    chosen = weights_command._choose(tensors, (), ["*blocks[[]3].w", "layers.1*"])
    by_rules = select(tensors, [Rule(name) for name in names])
    assert time.process_time() - start < 2  # 0.3 s on a quiet machine
    assert len(by_rules.taken) == 20_000
    assert {name for name in chosen.left if not name.startswith("layers.1")} == {
        name for name in names if "[3]" in name and not name.startswith("layers.1")
    }


def test_names_with_brackets_are_names(tmp_path):
    names = ["['params']['Dense_0']['kernel']", "['params']['Dense_1']['kernel']", "a[0].weight", "a0.weight", ""]
    file = File({name: Tensor("F32", (8, 6), W.tobytes()) for name in names}, {})
    for pattern, hits in (
        (names[0], {names[0]}),
        ("['params']['Dense_*']['kernel']", set(names[:2])),
        ("a[0].weight", {"a[0].weight"}),
        ("a[*].weight", {"a[0].weight"}),
        ("", {""}),
    ):
        _, printed = through(tmp_path, file, skip=[pattern])
        assert {name for name in names if f"left as it was: {name} (" in printed} == hits, pattern
        through(tmp_path, file, only=[pattern])
        assert {leaf.name for leaf in codec.inspect(tmp_path / "w.bq").leaves if leaf.kind != "array"} == hits, pattern


def test_equal_tensors_take_their_bytes_once(tmp_path):
    big = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32).tobytes()
    integers = np.random.default_rng(0).integers(0, 1000, 1000, np.int64).tobytes()
    both = {name: Tensor("F32", (200, 8), big) for name in ("embed", "head")} | {n: Tensor("I64", (1000,), integers) for n in "ij"}
    sizes = {}
    for names in (("embed", "i"), ("embed", "head", "i", "j")):
        file = File({name: both[name] for name in names}, {})
        back, printed = through(tmp_path, file)
        assert ("as embed" in printed and "as i" in printed) == (len(names) > 2)
        assert back.tensors["i"] == back.tensors[names[-1]] == file.tensors["i"]
        assert back.tensors["embed"] == back.tensors.get("head", back.tensors["embed"])
        sizes[len(names)] = (tmp_path / "w.bq").stat().st_size
    assert sizes[4] < sizes[2] + 100


def test_scales_of_weights_that_are_quantized_already_are_left(tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_weights(
        tmp_path / "w.safetensors",
        {
            "fc.qweight": rng.integers(0, 9, (8, 6), np.int32),
            "fc.scales": rng.normal(size=(2, 6)).astype(np.float16),
            "dense.weight": W,
            "dense.scales": rng.normal(size=(2, 6)).astype(np.float16),
        },
    )
    assert run("compress", tmp_path / "w.safetensors", "--method", "kmeans", "--bins", 4) == 0
    assert "left as it was: fc.scales (it belongs to fc.qweight, which is quantized already" in capsys.readouterr().out
    kinds = {leaf.name: leaf.kind for leaf in codec.inspect(tmp_path / "w.bq.safetensors").leaves}
    assert kinds == {"fc.qweight": "array", "fc.scales": "array", "dense.weight": "clustered", "dense.scales": "clustered"}
    assert run("compress", tmp_path / "w.safetensors", "--method", "kmeans", "--bins", 4, "--only", "fc.scales", "--force") == 0


def test_a_folder_of_shards_becomes_one_file(tmp_path, capsys):
    folder = tmp_path / "llama-3.1"
    for i in (1, 2):
        write_weights(folder / f"model-0000{i}-of-00002.safetensors", {f"w{i}": W + i}, metadata={"format": "pt"})
    assert run("compress", folder, "--method", "kmeans", "--bins", 4, "--coder", "raw") == 0
    out = tmp_path / "llama-3.1.bq.safetensors"
    assert [leaf.name for leaf in codec.inspect(out).leaves] == ["w1", "w2"]
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert f"{size:,}" in capsys.readouterr().out
    assert run("inspect", out) == 0
    assert "__metadata__ format: pt" in capsys.readouterr().out
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 1 of 2 shards: model-00002-of-00002.safetensors" in refused(capsys, "compress", folder, "--out", "o")


def test_files_named_one_by_one_become_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in (1, 2, 3):
        write_weights(f"model-0000{i}-of-00003.safetensors", {f"w{i}": W + i}, metadata={"format": "pt"})
    for name in ("other.safetensors", "again.safetensors"):
        write_weights(name, {"w1": W})
    first, second, third = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
    assert run("compress", first, second, third, "--out", "o", "--skip", "w2") == 0
    printed = capsys.readouterr().out
    assert f"{first} and 2 more" in printed and "left as it was: w2 (skipped" in printed
    assert [leaf.name for leaf in codec.inspect("o").leaves] == ["w1", "w2", "w3"]
    assert run("compress", first, second, third, "--out", "p", "--lossless") == 0
    assert run("decompress", "p", "--out", "whole") == 0
    assert {name: tensor.read().tolist() for name, tensor in open_weights("whole").items()} == {
        f"w{i}": (W + i).tolist() for i in (1, 2, 3)
    }
    for args, what in (
        ((first, third), "2 files of one checkpoint become one file: name it by --out"),
        ((first, third, "--out", "q"), f"lacks 1 of 3 shards: {second}"),
        (("other.safetensors", "again.safetensors", "--out", "q"), "both hold a tensor 'w1': they are several checkpoints"),
        ((first, first, "--out", "q"), "is named twice"),
        ((first, tmp_path, "--out", "q"), "is a folder, which stands for all of its files: name nothing beside it"),
        ((first, "m.tflite"), "m.tflite: a .tflite model is compressed by itself"),
        (("--config", "c.py", first, second), f"--config cannot go with {second}"),
    ):
        assert what in refused(capsys, "compress", *args), args


def test_every_command_says_what_another_file_is(tmp_path, capsys):
    (tmp_path / "lfs").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    np.savez(tmp_path / "a.npz", w=W)
    write_weights(tmp_path / "plain.safetensors", {"w": W})
    assert run("compress", "plain.safetensors", "--method", "kmeans", "--bins", 4) == 0
    (tmp_path / "m.tflite").write_bytes((tmp_path / "lfs").read_bytes())
    for args, what in (
        (("compress", "m.tflite", "--lossless"), "m.tflite is not a .tflite model, it is a git-lfs pointer"),
        (("compress", "--config", "plain.safetensors"), "is not a Python file, it is a plain safetensors file"),
        (("compress", "lfs"), "a git-lfs pointer"),
        (("inspect", "lfs"), "a git-lfs pointer"),
        (("compress", "a.npz"), "a NumPy archive (.npz)"),
        (("decompress", "a.npz", "--out", "o"), "a zip archive"),
        (("compress", "plain.bq.safetensors", "--out", "o"), "a bqjax file, compressed already: `bqjax inspect` shows it"),
        (("inspect", "plain.safetensors"), "plain safetensors file: `bqjax compress` reads it"),
    ):
        assert what in refused(capsys, *args), args
