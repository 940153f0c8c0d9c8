"""One file, a folder of shards, an index: one reader."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bqjax import codec
from bqjax.adapters.checkpoints import open_checkpoint, read
from bqjax.adapters.quantized import quantizer_tensors
from bqjax.adapters.safetensors import write_weights

A, B, C = (np.full((2, i), i, np.float32) for i in (1, 2, 3))
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture
def folder(tmp_path):
    write_weights(tmp_path / SHARDS[0], {"a": A, "b": B}, metadata={"format": "pt"})
    write_weights(tmp_path / SHARDS[1], {"c": C}, metadata={"format": "pt"})
    return tmp_path


def index(folder, weight_map, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return folder / name


def same(found):
    assert {name: array.tolist() for name, array in found.items()} == {"a": A.tolist(), "b": B.tolist(), "c": C.tolist()}


def test_file_folder_and_index(folder):
    assert read(folder / SHARDS[0]).keys() == {"a", "b"}
    same(read(folder))
    path = index(folder, {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]})
    for given in (folder, path, str(folder)):
        same(read(given))
    same(read(path.rename(folder / "other.json")))
    opened = open_checkpoint(folder)
    assert opened.metadata == {"format": "pt"}
    assert [file.name for file in opened.files] == SHARDS
    assert opened.file_bytes == sum((folder / shard).stat().st_size for shard in SHARDS)


def test_shards_of_other_names_and_bqjax_files_beside_them(tmp_path):
    write_weights(tmp_path / "unet.safetensors", {"a": A, "b": B}, metadata={"format": "pt", "by": "x"})
    write_weights(tmp_path / "vae.safetensors", {"c": C}, metadata={"by": "y"})
    codec.save(tmp_path / "unet.bq.safetensors", {"a": A})
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(tmp_path)
    same({name: tensor.read() for name, tensor in opened.tensors.items()})
    assert opened.metadata == {"format": "pt", "by": "x"}
    assert opened.passed_over == {
        "unet.bq.safetensors": "a bqjax file",
        "__metadata__ 'by' of vae.safetensors": "another file says something else",
    }


def test_what_is_not_in_the_index_is_said(folder):
    index(folder, {"a": SHARDS[0], "c": SHARDS[1]})
    opened = open_checkpoint(folder)
    assert list(opened.tensors) == ["a", "c"]
    assert opened.passed_over == {"b": f"in {SHARDS[0]}, but not in its index"}


def test_what_is_missing_is_named(folder, tmp_path):
    index(folder, {"a": SHARDS[0], "x": SHARDS[1]})
    with pytest.raises(ValueError, match=rf"{SHARDS[1]} lacks 1 tensors that model.safetensors.index.json says it holds: x"):
        read(folder)
    index(folder, {"a": SHARDS[0], "c": SHARDS[1], "d": "third.safetensors", "e": "fourth.safetensors"})
    with pytest.raises(ValueError, match=r"names 4 shards, of which 2 are missing: fourth.safetensors, third.safetensors"):
        read(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / SHARDS[0]).unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of 2 shards: {SHARDS[0]}"):
        read(folder)


def test_what_is_no_checkpoint_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*absent"):
        read(tmp_path / "absent")
    for shard in ("../x.safetensors", "/x.safetensors"):
        with pytest.raises(ValueError, match="names files outside of its folder"):
            read(index(folder, {"a": shard}))
    for text in ("[", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="is not an index of safetensors files"):
            read(folder)
    index(folder, {"a": SHARDS[0]}, "model.fp16.safetensors.index.json")
    with pytest.raises(ValueError, match="indexes of several checkpoints"):
        read(folder)
    for path in folder.glob("*.json"):
        path.unlink()
    write_weights(folder / "again.safetensors", {"a": A})
    with pytest.raises(ValueError, match=rf"again.safetensors and {SHARDS[0]} in .* both hold a tensor 'a'"):
        read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no .safetensors file$"):
        read(tmp_path / "empty")
    np.savez(tmp_path / "empty" / "w.npz", a=A)
    with pytest.raises(ValueError, match=r"holds no .safetensors file; w.npz is a NumPy archive"):
        read(tmp_path / "empty")


CODES = {"int32": np.zeros((8, 4), np.int32), "uint8": np.zeros((8, 4), np.uint8)}
SCALE = np.ones((2, 4), np.float16)


@pytest.mark.parametrize(
    ("codes", "scale"),
    [
        ("fc.qweight", "fc.scales"),
        ("fc.weight", "fc.weight_scale"),
        ("fc.weight", "fc.weight_scale_inv"),
        ("fc.weight", "fc.weight_scale_2"),
        ("fc.weight", "fc.weight.absmax"),
        ("fc.weight", "fc.weight.nested_absmax"),
        ("fc.weight", "fc.weight.quant_map"),
        ("fc.weight", "fc.SCB"),
        ("fc.weight", "fc.biases"),
        ("fc.weight_packed", "fc.weight_scale"),
        ("mlp.experts.up_blocks", "mlp.experts.up_scales"),
        ("fc.codes", "fc.codebooks"),
        ("fc.weight._data", "fc.weight._scale"),
        ("fc.W_q", "fc.zero"),
        ("fc/weight", "fc/weight_scale"),
    ],
)
def test_scales_are_known_by_the_codes_beside_them(codes, scale):
    tensors = {scale: SCALE, "other.scales": SCALE, "norm.weight": SCALE, "norm.count": np.zeros((), np.int64), "norm.scale": SCALE}
    assert quantizer_tensors(tensors | {codes: CODES["int32"]}) == {scale: codes}
    assert quantizer_tensors(tensors | {codes: CODES["uint8"].astype("float8_e4m3fn")}) == {scale: codes}
    assert quantizer_tensors(tensors | {codes: np.ones((8, 4), np.float32)}) == {}
