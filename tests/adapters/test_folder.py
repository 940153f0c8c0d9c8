"""A folder of a model goes into one file and comes back as it was: shards, index, configuration, tokenizer."""

from __future__ import annotations

import base64
import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from bqjax import codec
from bqjax.adapters.checkpoints import open_checkpoint
from bqjax.adapters.folder import KEY, ModelFolder, folder_metadata, kept_folder, model_folder
from bqjax.adapters.origin import origin_metadata
from bqjax.adapters.write_back import write_file, write_folder

RNG = np.random.default_rng(0)
EMBEDDING = RNG.normal(size=(20, 8)).astype(np.float32)
FIRST = {
    "embed.weight": EMBEDDING,
    "norm.weight": np.ones(8, ml_dtypes.bfloat16),
    "position_ids": np.arange(20)[None],
}
SECOND = {"head.weight": EMBEDDING, "down.weight": RNG.normal(size=(8, 20)).astype(np.float16)}
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = "model.safetensors.index.json"
CONFIG = {"model_type": "made_up", "torch_dtype": "float32", "hidden_size": 8}
BESIDE = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": '{"vocab": "déjà 重み"}\r\n'.encode(),
    "spiece.model": bytes(range(256)) * 3,
    "LICENSE": b"as it is",
    "1_Pooling/config.json": b"{}",
}


@pytest.fixture
def folder(tmp_path):
    """As its library writes it; and beside it what a folder collects."""
    path = tmp_path / "model"
    (path / "1_Pooling").mkdir(parents=True)
    for name, tensors in zip(SHARDS, (FIRST, SECOND), strict=True):
        save_file(tensors, path / name, {"format": "pt"})
    shards = dict.fromkeys(FIRST, SHARDS[0]) | dict.fromkeys(SECOND, SHARDS[1])
    size = sum(x.nbytes for x in (FIRST | SECOND).values())
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": size, "total_parameters": 7}, "weight_map": shards}))
    for name, content in BESIDE.items():
        (path / name).write_bytes(content)
    (path / "pytorch_model.bin").write_bytes(b"PK")
    (path / "pytorch_model.bin.index.json").write_text("{}")
    (path / "README.md").write_text("# A model")
    (path / ".gitattributes").write_text("")
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_bytes(b"\x08\x07")
    save_file(FIRST, path / "consolidated.safetensors")
    return path


def compressed(path, out, **options):
    """A file of a folder, its tensors as they are."""
    checkpoint = open_checkpoint(path)
    metadata = origin_metadata(checkpoint.tensors, checkpoint.metadata) | folder_metadata(model_folder(checkpoint))
    codec.save(out, {name: tensor.read() for name, tensor in checkpoint.tensors.items()}, metadata=metadata, **options)
    return out


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_folder_comes_back_as_it_was(folder, tmp_path):
    file = compressed(folder, tmp_path / "m.bq.safetensors")
    written = write_folder(file, tmp_path / "back")
    found = files(tmp_path / "back")
    assert set(found) == {*SHARDS, INDEX, *BESIDE} == set(written.files)
    assert written.tensors == 5 and written.nbytes == sum(map(len, found.values()))
    for name, content in BESIDE.items():
        assert found[name] == content
    for shard, tensors in zip(SHARDS, (FIRST, SECOND), strict=True):
        with safetensors.safe_open(tmp_path / "back" / shard, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
        loaded = load_file(tmp_path / "back" / shard)
        assert loaded.keys() == tensors.keys()
        for name, array in tensors.items():
            assert (loaded[name].dtype, loaded[name].tobytes()) == (array.dtype, array.tobytes())
    assert json.loads(found[INDEX]) == json.loads((folder / INDEX).read_text())


def test_what_is_not_carried_is_said(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.passed_over == {"consolidated.safetensors": "the index does not name it"}
    assert model_folder(checkpoint).left == {
        "README.md": "loading the model does not take it",
        "onnx/": "it holds weights of its own: compress it by itself",
        "pytorch_model.bin": "of another format",
        "pytorch_model.bin.index.json": "of another format",
    }
    assert open_checkpoint(folder / INDEX).root == folder  # an index stands for its folder
    assert model_folder(open_checkpoint(folder / SHARDS[0])) is None  # a file for itself


def test_a_tied_tensor_is_stored_once_and_written_twice(folder, tmp_path):
    info = codec.inspect(compressed(folder, tmp_path / "m"))
    assert {leaf.name: leaf.same_as for leaf in info.leaves if leaf.same_as} == {"head.weight": "embed.weight"}


def test_one_file_without_an_index(tmp_path):
    (tmp_path / "m").mkdir()
    save_file(FIRST, tmp_path / "m" / "weights.safetensors")
    write_folder(compressed(tmp_path / "m", tmp_path / "m.bq"), tmp_path / "back")
    assert set(files(tmp_path / "back")) == {"weights.safetensors"}
    # Made of one file: the name that libraries look for.
    codec.save(tmp_path / "plain.bq", FIRST)
    assert write_folder(tmp_path / "plain.bq", tmp_path / "other").files == ("model.safetensors",)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_another_dtype(folder, tmp_path, dtype):
    file = compressed(folder, tmp_path / "m")
    written = write_folder(file, tmp_path / "back", dtype=dtype)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = {name: array for shard in SHARDS for name, array in load_file(tmp_path / "back" / shard).items()}
    for name, array in (FIRST | SECOND).items():
        expected = array if name == "position_ids" else array.astype(numpy_dtype)
        assert (found[name].dtype, found[name].tobytes()) == (expected.dtype, expected.tobytes())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIG | {"torch_dtype": dtype}
    assert written.notes == (() if dtype == "float32" else (f"config.json says {dtype} now",))
    total = json.loads((tmp_path / "back" / INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(array.nbytes for array in found.values())
    single = write_file(file, tmp_path / "one.safetensors", dtype=dtype)
    assert load_file(tmp_path / "one.safetensors").keys() == found.keys()
    assert single.notes[0].startswith("left out: 1_Pooling/config.json, LICENSE, config.json")


def test_what_a_dtype_cannot_hold_is_named(tmp_path):
    codec.save(tmp_path / "m", {"w": np.float32([1, 1e6, np.inf])})
    with pytest.raises(ValueError, match="'w' has 1 values that float16 cannot hold: take bfloat16"):
        write_folder(tmp_path / "m", tmp_path / "back", dtype="float16")
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        write_file(tmp_path / "m", tmp_path / "back", dtype="int8")
    assert not (tmp_path / "back").exists()


def test_nothing_is_overwritten_unasked(folder, tmp_path):
    file = compressed(folder, tmp_path / "m")
    back = tmp_path / "back"
    back.mkdir()
    write_folder(file, back)  # an empty folder is none
    (back / "mine.txt").write_text("mine")
    (back / "config.json").write_text("old")
    with pytest.raises(ValueError, match="exists and is not empty"):
        write_folder(file, back)
    assert (back / "config.json").read_text() == "old"
    write_folder(file, back, force=True)
    assert (back / "mine.txt").read_text() == "mine"
    assert (back / "config.json").read_bytes() == BESIDE["config.json"]
    with pytest.raises(ValueError, match="is a file: name a folder"):
        write_folder(file, file)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_damaged_file_leaves_no_folder(folder, tmp_path):
    file = compressed(folder, tmp_path / "m")
    data = bytearray(file.read_bytes())
    data[300] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        write_folder(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@hypothesis.given(
    files=st.dictionaries(st.sampled_from(["config.json", "a/b.txt", "ß.model", "LICENSE", "a/c/d.txt"]), st.binary(max_size=99)),
    of=st.lists(st.integers(0, 2), min_size=1, max_size=5).map(sorted),
    index=st.sampled_from([None, "model.safetensors.index.json"]),
)
def test_what_is_kept_of_any_folder_is_read_again(files, of, index, tmp_path_factory):
    about = {} if index is None else {"format": ["x", 1]}
    folder = ModelFolder(files=files, shards=["x.safetensors", "y/z", "重"], of=of, index_name=index, index_metadata=about)
    path = tmp_path_factory.mktemp("any") / "m"
    info = codec.save(path, {f"w{i}": np.zeros(1, np.float32) for i in range(len(of))}, metadata=folder_metadata(folder))
    for found in (info, codec.inspect(path)):
        assert kept_folder(found) == folder


OUTSIDE = ("../x", "/x", "a/../../x", "", ".", ".ssh/x", "a\\b", "a\0b", "a//b", "C:x", "~/../x/y/z/w")
GOOD = {"files": {}, "shards": ["a.safetensors"]}


@pytest.mark.parametrize(
    ("kept", "what"),
    [
        ([], "other keys"),
        (GOOD | {"more": 1}, "other keys"),
        (GOOD | {"files": {"x": -1}}, "must not be negative"),
        (GOOD | {"files": {"x": True}}, "must not be negative"),
        (GOOD | {"files": {"x": 1}}, "has not the 1 bytes"),
        (GOOD | {"files": {"x": 1 << 40}}, "would have"),
        (GOOD | {"files": {"x": 1}, "content": 1}, "would have"),
        (GOOD | {"files": {"x": 1}, "content": "§"}, "Base64|ASCII"),
        (GOOD | {"files": {"x": 1}, "content": base64.b64encode(b"\x03" * 9).decode()}, ""),
        (GOOD | {"shards": []}, "each once"),
        (GOOD | {"shards": ["a", "a"]}, "each once"),
        (GOOD | {"of": [1]}, "each leaf"),
        (GOOD | {"of": [0]}, "each leaf"),
        (GOOD | {"shards": ["a", "b"], "of": [1, 0]}, "ascending"),
        (GOOD | {"index": {"name": "i"}}, "index"),
        (GOOD | {"index": {"name": "a.safetensors", "metadata": {}}}, "one name"),
        *((GOOD | {"files": {name: 0}}, "no name within") for name in OUTSIDE),
        *((GOOD | {"shards": [name]}, "no name within") for name in OUTSIDE),
        (GOOD | {"index": {"name": "../i", "metadata": {}}}, "no name within"),
    ],
)  # fmt: skip
def test_what_a_file_says_is_not_believed(kept, what, tmp_path):
    codec.save(tmp_path / "m", {"w": np.zeros(2, np.float32), "v": np.zeros(3, np.float32)}, metadata={KEY: json.dumps(kept)})
    with pytest.raises(ValueError, match=f"its metadata 'folder' are not those of a folder .*{what}"):
        write_folder(tmp_path / "m", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_text_that_is_no_json(folder, tmp_path):
    codec.save(tmp_path / "m", FIRST, metadata={KEY: "["})
    with pytest.raises(ValueError, match="not those of a folder"):
        kept_folder(codec.inspect(tmp_path / "m"))
    (folder / "config.json").write_text("no JSON")
    written = write_folder(compressed(folder, tmp_path / "n"), tmp_path / "back", dtype="float16")
    assert written.notes == ("config.json is no JSON, and stays what it was",)


def test_more_than_fits_is_left(folder, monkeypatch):
    monkeypatch.setattr("bqjax.adapters.folder._MOST_BYTES", 200)
    found = model_folder(open_checkpoint(folder))
    assert found.left["spiece.model"] == "the files beside the weights have more than 200 bytes"
    assert found.file_bytes <= 200 and "config.json" in found.files
    assert dataclasses.replace(found, files={}).file_bytes == 0
