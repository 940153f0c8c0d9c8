"""Checkpoints of Orbax, written by Orbax: arrays by name, for compression and for NNX models."""

from __future__ import annotations

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from bqjax.adapters.checkpoints import open_checkpoint, read
from bqjax.adapters.flax import nnx_load, nnx_params
from bqjax.core.tree import named_leaves


class Net(nnx.Module):
    def __init__(self, width=4):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(4, width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's state, a pure dict of it, a manager's steps, and two items."""
    folder = tmp_path_factory.mktemp("orbax")
    model = Net()
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "state", nnx.state(model))
        writer.save(folder / "pure", nnx.to_pure_dict(nnx.state(model)))
        for name in ("params", "opt_state"):
            writer.save(folder / "items" / name, {"w": np.ones(2, np.float32)})
    with ocp.CheckpointManager(folder / "steps") as manager:
        for step in (2, 10):
            manager.save(step, args=ocp.args.PyTreeSave({"w": np.full((2, 2), step, np.float32), "step": step, "name": "x"}))
    return folder, model


def test_names_are_those_of_the_model(saved):
    folder, model = saved
    expected = {**named_leaves(nnx_params(model)), "norm/mean": model.norm.mean[...], "norm/var": model.norm.var[...]}
    for name in ("state", "pure"):
        found = read(folder / name)
        assert found.keys() == expected.keys()
        for key, array in found.items():
            np.testing.assert_array_equal(array, expected[key])
            assert array.dtype == np.float32
    opened = open_checkpoint(folder / "state")
    assert opened.root is None and opened.file_bytes > 0 and opened.tensors["layers/0/kernel"].shape == (4, 4)


def test_a_model_takes_them_and_says_what_does_not_fit(saved):
    folder, model = saved
    loaded = nnx_load(nnx.eval_shape(Net), read(folder / "pure"), lambda name: name)
    for name, array in named_leaves(nnx_params(loaded)).items():
        np.testing.assert_array_equal(array, named_leaves(nnx_params(model))[name])
    with pytest.raises(ValueError, match=r"pure does not fit Net: layers/0/bias has shape \(4,\), layers/0/bias needs \(5,\); "):
        nnx_load(nnx.eval_shape(lambda: Net(5)), read(folder / "pure"), lambda name: name, source=str(folder / "pure"))


def test_the_last_step(saved):
    folder, _ = saved
    found = read(folder / "steps")
    assert found["w"].tolist() == [[10, 10], [10, 10]] and found["step"] == 10
    assert read(folder / "steps" / "2")["w"].tolist() == [[2, 2], [2, 2]]
    assert set(open_checkpoint(folder / "steps").passed_over) == {"name"}


def test_what_cannot_be_read_is_named(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(ValueError, match=r"items is a checkpoint of Orbax with the items opt_state, params: name one of them"):
        read(folder / "items")
    (tmp_path / "_METADATA").write_text("{}")
    with pytest.raises(ValueError, match="is no checkpoint of Orbax that can be read"):
        read(tmp_path)
