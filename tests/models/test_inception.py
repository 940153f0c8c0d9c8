"""Inception: published numbers of parameters, and torchvision's network in PyTorch's own operations."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from bqjax.adapters.flax import nnx_params
from bqjax.core.tree import named_leaves
from bqjax.models.inception import _V1, InceptionV1, InceptionV2, load_googlenet

WIDTH = 1 / 16


@pytest.mark.parametrize(
    ("network", "total", "slim"),
    [pytest.param(InceptionV1, 6_624_904, 5_607_184, marks=pytest.mark.slow), (InceptionV2, 11_188_224, 10_173_112)],
)
def test_published_numbers_of_parameters(network, total, slim):
    """torchvision's count of GoogLeNet; TensorFlow-Slim's of both, from its own tests of the base networks."""

    def run():
        model = network(rngs=nnx.Rngs(0))
        return nnx.view(model, deterministic=True)(jnp.zeros((2, 224, 224, 3))), model

    logits, model = nnx.eval_shape(run)  # one trace: it takes seconds
    assert logits.shape == (2, 1000)
    counts = {name: leaf.size for name, leaf in named_leaves(nnx_params(model)).items()}
    assert sum(counts.values()) == total
    assert counts["fc/kernel"] == 1024 * 1000
    base = {name: n for name, n in counts.items() if not name.startswith("fc/")}
    # Slim has no scales, and counts running means and variances as well as biases.
    assert (
        sum(n for name, n in base.items() if not name.endswith("scale"))
        + 2 * sum(n for name, n in base.items() if name.endswith("scale"))
        == slim
    )


def state_dict(classes=7):
    """A narrow GoogLeNet's tensors in torchvision's names, shapes and order of axes."""
    rng = np.random.default_rng(0)
    tensors = {}

    def layer(name, cin, cout, size):
        spread = np.sqrt(2 / (cin * size**2))
        tensors[f"{name}.conv.weight"] = rng.normal(0, spread, (cout, cin, size, size)).astype(np.float32)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            values = rng.uniform(0.5, 1.5, cout) if kind != "bias" else rng.normal(0, 0.1, cout)
            tensors[f"{name}.bn.{kind}"] = values.astype(np.float32)
        tensors[f"{name}.bn.num_batches_tracked"] = np.array(3)
        return cout

    def n(channels):
        return max(1, int(channels * WIDTH))

    channels = layer("conv3", layer("conv2", layer("conv1", 3, n(64), 7), n(64), 1), n(192), 3)
    for name, (one, before3, three, before5, five, pooled) in _V1.items():
        layer(f"{name}.branch1", channels, n(one), 1)
        layer(f"{name}.branch2.1", layer(f"{name}.branch2.0", channels, n(before3), 1), n(three), 3)
        layer(f"{name}.branch3.1", layer(f"{name}.branch3.0", channels, n(before5), 1), n(five), 3)
        layer(f"{name}.branch4.1", channels, n(pooled), 1)
        channels = n(one) + n(three) + n(five) + n(pooled)
    tensors["fc.weight"] = rng.normal(0, 0.2, (classes, channels)).astype(np.float32)
    tensors["fc.bias"] = rng.normal(0, 0.2, classes).astype(np.float32)
    tensors["aux1.fc2.bias"] = np.zeros(3, np.float32)
    return tensors


def torch_forward(torch, tensors, x):
    functional, w = torch.nn.functional, {name: torch.tensor(value) for name, value in tensors.items()}

    def layer(x, name, stride=1):
        kernel = w[f"{name}.conv.weight"]
        y = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)
        statistics = (w[f"{name}.bn.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return torch.relu(functional.batch_norm(y, *statistics, eps=1e-3))

    def pool(x, size, stride=2, padding=0):
        return functional.max_pool2d(x, size, stride, padding, ceil_mode=True)

    x = pool(layer(torch.tensor(x), "conv1", 2), 3)
    x = pool(layer(layer(x, "conv2"), "conv3"), 3)
    for name in _V1:
        branches = [layer(x, f"{name}.branch1")]
        branches += [layer(layer(x, f"{name}.branch{i}.0"), f"{name}.branch{i}.1") for i in (2, 3)]
        branches.append(layer(pool(x, 3, 1, 1), f"{name}.branch4.1"))
        x = torch.cat(branches, 1)
        if name in ("inception3b", "inception4e"):
            x = pool(x, 3 if name == "inception3b" else 2)
    return (x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]).numpy()


def test_torchvision_weights_give_what_pytorch_computes(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = state_dict()
    save_file(tensors, tmp_path / "googlenet.safetensors")
    model = load_googlenet(tmp_path / "googlenet.safetensors", width=WIDTH)
    # An odd size: windows of ceil mode reach over the edge.
    x = np.random.default_rng(1).normal(size=(2, 3, 75, 90)).astype(np.float32)
    found = nnx.jit(lambda model, x: model(x))(model, x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, torch_forward(torch, tensors, x), rtol=1e-3, atol=1e-3)
    assert found.shape == (2, 7)


def test_what_does_not_fit_is_listed(tmp_path):
    tensors = state_dict()
    tensors["conv1.conv.weight"] = tensors["conv1.conv.weight"][:, :, :5, :5]
    tensors["conv2.bn.bias"] = np.zeros(3, np.int32)
    tensors["layer1.0.conv1.weight"] = np.zeros((2, 2, 1, 1), np.float32)
    del tensors["inception3a.branch4.1.bn.weight"]
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit InceptionV1") as caught:
        load_googlenet(tmp_path / "w.safetensors", width=WIDTH)
    for part in (
        "conv1.conv.weight has shape (4, 3, 5, 5) (in Flax's order of axes (5, 5, 3, 4)), conv1/conv/kernel needs (7, 7, 3, 4)",
        "conv2.bn.bias is int32, not floating point",
        "inception3a.branch4.1.bn.weight is missing (for inception3a/branch4/0/bn/scale, (2,))",
        "layer1.0.conv1.weight (2, 2, 1, 1) has no place in the network",
    ):
        assert part in str(caught.value)


def test_width():
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        InceptionV1(width=0, rngs=nnx.Rngs(0))
