"""Weights by a table of names: values arrive, or everything that does not fit is listed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import nnx_load, nnx_params


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(8)])
        self.bn = nnx.BatchNorm(2, rngs=rngs)


def abstract():
    return nnx.eval_shape(lambda: Net(rngs=nnx.Rngs(0)))


def name_of(variable):
    return variable.replace("/", "-").upper()


def tensors():
    rng = np.random.default_rng(0)
    names = [f"LAYERS-{i}-{kind}" for i in range(8) for kind in ("KERNEL", "BIAS")]
    weights = {name: rng.normal(size=(2, 2) if name.endswith("KERNEL") else 2).astype(np.float16) for name in names}
    return weights | {f"BN-{kind}": rng.normal(size=2).astype(np.float16) for kind in ("SCALE", "BIAS", "MEAN", "VAR")}


def test_values_arrive_converted_and_cast():
    model = nnx_load(abstract(), tensors(), name_of, lambda name, x: x.T if name.endswith("kernel") else x)
    params = nnx_params(model)
    np.testing.assert_array_equal(params["layers"][3]["kernel"], tensors()["LAYERS-3-KERNEL"].T.astype(np.float32))
    np.testing.assert_array_equal(model.bn.var[...], tensors()["BN-VAR"].astype(np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_mapping_of_names():
    model = nnx.eval_shape(lambda: nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    weights = {"w": np.ones((2, 1), np.float32), "b": np.ones(1, np.float32)}
    assert nnx_load(model, weights, {"kernel": "w", "bias": "b"}).bias[...].tolist() == [1]
    with pytest.raises(ValueError, match=r"no name is given for bias, \(1,\); b \(1,\) has no place in the network$"):
        nnx_load(model, weights, {"kernel": "w"})


def test_all_that_does_not_fit_is_listed():
    wrong = tensors() | {"BN-MEAN": np.zeros(3, np.float32), "BN-VAR": np.zeros(2, np.int8)}
    del wrong["LAYERS-1-BIAS"]
    wrong |= {"EXTRA": np.zeros((1, 2)), "COUNT": np.array(3)}
    with pytest.raises(ValueError, match=r"^w\.st does not fit Net: ") as caught:
        nnx_load(abstract(), wrong, name_of, ignored="COUNT".__eq__, source="w.st")
    message = str(caught.value)
    for part in (
        "LAYERS-1-BIAS is missing (for layers/1/bias, (2,))",
        "BN-MEAN has shape (3,), bn/mean needs (2,)",
        "BN-VAR is int8, not floating point",
        "EXTRA (1, 2) has no place in the network",
    ):
        assert part in message
    assert "COUNT" not in message
    with pytest.raises(ValueError, match=r"; and 8 more$"):
        nnx_load(abstract(), {}, name_of)
    # A file of something else shows what it holds.
    with pytest.raises(ValueError, match=r"; and 8 more; x0 \(\) has .*; x3 \(\) has no place in the network; and 3 more$"):
        nnx_load(abstract(), {f"x{i}": 0.0 for i in range(7)}, name_of)


def test_shapes_before_and_after_conversion():
    wrong = tensors() | {"LAYERS-0-KERNEL": np.zeros((2, 3), np.float32)}
    with pytest.raises(ValueError, match=r"KERNEL has shape \(2, 3\) \(in Flax's .* \(3, 2\)\), layers/0/kernel needs \(2, 2\)"):
        nnx_load(abstract(), wrong, name_of, lambda _, x: x.T)


def test_an_abstract_model_with_more_than_weights():
    model = nnx.eval_shape(lambda: nnx.Sequential(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="abstract Sequential holds more than parameters"):
        nnx_load(model, {}, name_of)
