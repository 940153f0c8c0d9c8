"""A folder as a task's file: what the network does not use is in it, ties hold, and what was written is compared."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from bqjax import codec
from bqjax.adapters.checkpoints import open_checkpoint
from bqjax.adapters.folder import model_folder
from bqjax.adapters.folder_storage import FolderStorage, tied_names
from bqjax.experiment.storage import write_checked
from bqjax.methods.rate_distortion.search import file_bytes

W = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
TENSORS = {"a.weight": W, "b.weight": W + 1, "c.weight": W, "ids": np.arange(9), "unused": W[:3]}


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "m").mkdir()
    save_file(TENSORS, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    (tmp_path / "m" / "config.json").write_text("{}" * 500)
    checkpoint = open_checkpoint(tmp_path / "m")
    beside = {name: TENSORS[name] for name in ("ids", "unused")}
    return FolderStorage(checkpoint=checkpoint, folder=model_folder(checkpoint), beside=beside, tied={"c.weight": "a.weight"})


def test_ties_are_of_equal_bytes_shape_and_dtype():
    others = {"view": W.T, "half": W.astype(np.float16), "flat": W.reshape(-1), "small": W[:2], "again": W[:2].copy()}
    assert tied_names(TENSORS | others) == {"c.weight": "a.weight"}
    assert tied_names(TENSORS | others, ["b.weight", "c.weight", "a.weight"]) == {"a.weight": "c.weight"}
    assert tied_names({"x": W, "y": np.ascontiguousarray(W[::-1])[::-1]}) == {"y": "x"}


def test_the_file_holds_everything_and_the_tree_what_is_used(storage, tmp_path):
    tree = {"b.weight": TENSORS["b.weight"], "a.weight": W * 2}
    read = write_checked(storage, tmp_path / "m.bq", tree, metadata={"task": "t"})
    assert read.keys() == tree.keys()
    info = codec.inspect(tmp_path / "m.bq")
    assert [leaf.name for leaf in info.leaves] == list(storage.checkpoint.tensors)  # the order of the file, for aligned tensors
    assert {"task", "safetensors", "folder"} <= set(info.metadata)
    loaded = codec.load(tmp_path / "m.bq")
    assert loaded["c.weight"] is loaded["a.weight"] and loaded["ids"].tolist() == list(range(9))
    assert storage.n_weights(tree) == 2 * W.size + 24
    size = sum(path.stat().st_size for path in (tmp_path / "m").iterdir())
    assert len(storage.original(tree)) == size
    # What a search for a size measures is this file, not the tree alone.
    assert file_bytes(tree, "auto", {"task": "t"}, storage) == info.file_bytes > file_bytes(tree, "auto", {"task": "t"})


def test_what_stands_beside_the_tree_is_compared(storage, tmp_path):
    codec.save(tmp_path / "m.bq", TENSORS | {"ids": np.arange(9) + 1})
    with pytest.raises(RuntimeError, match="tensor 'ids' does not decode to what was written into it"):
        storage.load(tmp_path / "m.bq", {"a.weight": W})
