"""PyTorch's names and layouts: values arrive at the right variables, in the right order of axes, or not at all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import nnx_params
from bqjax.adapters.torch import load_torch, torch_name, torch_to_nnx_layout


class Net(nnx.Module):
    """A convolution that is not symmetric in anything, BatchNorm, and a dense layer, inside a list."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Conv(3, 4, (2, 3), strides=(2, 1), padding=((1, 0), (0, 2)), rngs=rngs)])
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.fc = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.bn(self.layers[0](x)).mean(axis=(1, 2)))


def abstract_net():
    return nnx.eval_shape(lambda: Net(rngs=nnx.Rngs(0)))


def state_dict(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {
        "layers.0.weight": (4, 3, 2, 3),
        "layers.0.bias": (4,),
        "bn.weight": (4,),
        "bn.bias": (4,),
        "bn.running_mean": (4,),
        "bn.running_var": (4,),
        "fc.weight": (5, 4),
        "fc.bias": (5,),
    }
    tensors = {name: rng.uniform(0.5, 1.5, shape).astype(dtype) for name, shape in shapes.items()}
    return tensors | {"bn.num_batches_tracked": np.array(7)}


def conv2d(x, weight, bias, stride, padding):
    """PyTorch's convolution by its definition: ``x [n, ci, h, w]``, ``weight [co, ci, kh, kw]``, in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *padding))
    kh, kw = weight.shape[2:]
    rows, columns = (x.shape[2] - kh) // stride[0] + 1, (x.shape[3] - kw) // stride[1] + 1
    out = np.empty((len(x), len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, :, i * stride[0] : i * stride[0] + kh, j * stride[1] : j * stride[1] + kw]
            out[:, :, i, j] = np.einsum("nchw,ochw->no", patch, weight) + bias[None]
    return out


def test_the_network_computes_what_pytorch_does():
    w = state_dict()
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 5)).astype(np.float32)
    y = conv2d(x, w["layers.0.weight"], w["layers.0.bias"], (2, 1), ((1, 0), (0, 2)))
    mean, var, scale, bias = (w[f"bn.{k}"][None, :, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
    y = ((y - mean) / np.sqrt(var + 1e-5) * scale + bias).mean(axis=(2, 3))
    expected = y @ w["fc.weight"].T + w["fc.bias"][None]

    model = nnx.view(load_torch(abstract_net(), w), use_running_average=True)
    np.testing.assert_allclose(model(jnp.asarray(x.transpose(0, 2, 3, 1))), expected, rtol=1e-5)


def test_values_are_copied_and_cast_and_the_model_is_left_alone():
    model = Net(rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx_params(model))
    loaded = load_torch(model, state_dict(np.float16))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(loaded)))} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(loaded.bn.var[...], state_dict(np.float16)["bn.running_var"].astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, nnx_params(model), before)
    assert type(loaded) is Net


@pytest.mark.parametrize(
    ("shape", "expected"), [((7,), (7,)), ((5, 4), (4, 5)), ((8, 3, 5), (5, 3, 8)), ((8, 1, 3, 5), (3, 5, 1, 8))]
)
def test_layouts(shape, expected):
    assert torch_to_nnx_layout(np.zeros(shape)).shape == expected


def test_names():
    names = ["conv1/kernel", "layer2/0/bn1/scale", "linear/bias", "bn1/mean", "bn1/var"]
    expected = ["conv1.weight", "layer2.0.bn1.weight", "linear.bias", "bn1.running_mean", "bn1.running_var"]
    assert [torch_name(name) for name in names] == expected
    with pytest.raises(ValueError, match="'cell/recurrent_kernel' has no counterpart"):
        torch_name("cell/recurrent_kernel")


def test_embeddings_have_a_row_for_each_token():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = nnx.eval_shape(lambda: nnx.Embed(3, 2, rngs=nnx.Rngs(0)))
    np.testing.assert_array_equal(load_torch(model, {"weight": table}).embedding[...], table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bn.running_var": None, "fc.bias": None},
            r"w\.st does not fit Net: bn\.running_var is missing .*; fc\.bias is missing \(for fc/bias, \(5,\)\)$",
        ),
        (
            {"fc2.weight": np.zeros(1), "extra": np.zeros(1)},
            r"Net: fc2\.weight \(1,\) has no place in the network; extra \(1,\) has no place in the network$",
        ),
        ({"num_batches_tracked.weight": np.zeros(1)}, r"num_batches_tracked\.weight \(1,\) has no place"),
        (
            {"layers.0.weight": np.zeros((2, 3, 3, 4), np.float32)},
            r"layers\.0\.weight has shape \(2, 3, 3, 4\) \(in .* \(3, 4, 3, 2\)\), layers/0/kernel needs \(2, 3, 3, 4\)$",
        ),
        (
            {"fc.weight": np.zeros((4, 5), np.float32)},
            r"fc\.weight has shape \(4, 5\) \(in .* \(5, 4\)\), fc/kernel needs \(4, 5\)$",
        ),
        ({"bn.bias": np.zeros(4, np.int32)}, r"bn\.bias is int32, not floating point$"),
    ],
)
def test_tensors_that_do_not_fit(change, message):
    tensors = {name: tensor for name, tensor in (state_dict() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load_torch(abstract_net(), tensors, source="w.st")
