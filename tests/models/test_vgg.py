"""VGG: published numbers of parameters, computed without allocating them, and a small variant that runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.tree import named_leaves
from bqjax.models.vgg import VGG, load_vgg


def sizes(*args, **kwargs):
    params = nnx_params(nnx.eval_shape(lambda: VGG(*args, rngs=nnx.Rngs(0), **kwargs)))
    return {name: leaf.size for name, leaf in named_leaves(params).items()}


@functools.cache
def small(dropout=0.5):
    """A narrow VGG16 for images of 32 x 32, with values from NumPy."""
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: VGG(16, 10, 32, width=0.0625, hidden=16, rngs=nnx.Rngs(0)))
    model.dropout = nnx.Dropout(dropout, rngs=nnx.Rngs(0))

    def values(leaf):
        spread = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(scale=spread, size=leaf.shape), jnp.float32)

    graph, state, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, jax.tree.map(values, nnx.to_pure_dict(state)), nnx.to_pure_dict(rest))


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)


def test_published_numbers_of_parameters():
    vgg16, vgg19 = sizes(16), sizes(19)
    assert (sum(vgg16.values()), sum(vgg19.values())) == (138_357_544, 143_667_240)
    assert sum(size for name, size in vgg16.items() if name.startswith("fc")) == 123_642_856
    assert [sum(name.endswith("kernel") for name in s) for s in (vgg16, vgg19)] == [16, 19]
    assert "conv5_3/kernel" in vgg16
    assert "conv5_4/kernel" not in vgg16
    assert vgg19["conv5_4/kernel"] == 9 * 512 * 512


def test_classes_and_sizes():
    assert sizes(16, 10, 32)["fc1/kernel"] == 512 * 4096
    assert sizes(16, 10, 64, hidden=32)["fc1/kernel"] == 4 * 512 * 32
    assert sizes(16, 7)["fc3/kernel"] == 4096 * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 11}, "depth must be 16 or 19, got 11"),
        ({"image_size": 100}, "image_size must be a positive multiple of 32, got 100"),
        ({"image_size": 0}, "image_size must be a positive multiple of 32, got 0"),
        ({"width": 0.01}, "width must leave at least one of 64 channels, got 0.01"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VGG(**arguments, rngs=nnx.Rngs(0))


def test_evaluation_is_deterministic_and_training_is_not(images):
    model = small()
    apply, params = nnx_apply(model), nnx_params(model)
    run = jax.jit(apply)
    assert run(params, images).shape == (2, 10)
    np.testing.assert_array_equal(run(params, images), run(params, images))
    np.testing.assert_allclose(run(params, images), jax.jit(nnx_apply(small(dropout=0.0)))(params, images), rtol=1e-4, atol=1e-6)
    training = nnx.jit(lambda model: model(images))
    assert not np.array_equal(training(model), training(model))


def test_flattens_channels_first(images):
    """PyTorch's order of inputs of the first dense layer."""
    model = nnx.eval_shape(lambda: VGG(16, 10, 64, width=0.0625, hidden=16, rngs=nnx.Rngs(0)))
    seen = []

    class Record(nnx.Module):
        def __call__(self, x):
            seen.append(x)
            return jnp.zeros((len(x), 16))

    for names in model.stages:
        for name in names:
            setattr(model, name, lambda x: x)
    model.fc1, model.fc2, model.fc3, model.dropout = Record(), Record(), Record(), lambda x: x
    x = jnp.arange(64.0 * 64 * 3).reshape(1, 64, 64, 3)
    model(x)
    pooled = np.asarray(x).reshape(2, 32, 2, 32, 3).max(axis=(1, 3))
    np.testing.assert_array_equal(seen[0][0], pooled.transpose(2, 0, 1).reshape(-1))


def test_images_of_another_size(images):
    with pytest.raises(ValueError, match=r"images must be \[n, 32, 32, 3\], got \(2, 16, 32, 3\)"):
        small()(images[:, :16])


def torchvision_weights(depth=16, side=1):
    """A narrow VGG in torchvision's names, shapes and order of axes."""
    rng = np.random.default_rng(0)
    tensors, place, cin = {}, 0, 3
    for n, channels in zip((2, 2, 3, 3, 3) if depth == 16 else (2, 2, 4, 4, 4), (4, 8, 16, 32, 32), strict=True):
        for _ in range(n):
            tensors[f"features.{place}.weight"] = rng.normal(0, np.sqrt(2 / (9 * cin)), (channels, cin, 3, 3))
            tensors[f"features.{place}.bias"] = rng.normal(0, 0.1, channels)
            place, cin = place + 2, channels
        place += 1
    for name, shape in {"0": (16, 32 * side**2), "3": (16, 16), "6": (10, 16)}.items():
        tensors[f"classifier.{name}.weight"] = rng.normal(0, np.sqrt(1 / shape[1]), shape)
        tensors[f"classifier.{name}.bias"] = rng.normal(0, 0.1, shape[0])
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def keras_weights(torch_weights, side):
    """The same network in Keras's names and layouts."""
    convolutions = [name for name in torch_weights if name.startswith("features") and name.endswith("weight")]
    stages = (2, 2, 3, 3, 3) if len(convolutions) == 13 else (2, 2, 4, 4, 4)
    places = [f"block{i}_conv{j + 1}" for i, n in enumerate(stages, 1) for j in range(n)]
    tensors = {}
    for layer, name in zip(places, convolutions, strict=True):
        tensors[f"{layer}/kernel:0"] = torch_weights[name].transpose(2, 3, 1, 0)
        tensors[f"{layer}/bias:0"] = torch_weights[name.replace("weight", "bias")]
    for layer, place in {"fc1": 0, "fc2": 3, "predictions": 6}.items():
        tensors[f"{layer}/kernel:0"] = torch_weights[f"classifier.{place}.weight"].T
        tensors[f"{layer}/bias:0"] = torch_weights[f"classifier.{place}.bias"]
    kernel = tensors["fc1/kernel:0"]  # rows by channel, row, column
    rows = np.arange(len(kernel)).reshape(-1, side, side).transpose(1, 2, 0).reshape(-1)
    tensors["fc1/kernel:0"] = kernel[rows]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def write(tmp_path, tensors):
    save_file(tensors, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_published_weights_give_what_pytorch_computes(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = torchvision_weights(side=2)
    x = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    w = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    y, functional = torch.tensor(x), torch.nn.functional
    for place in (0, 2, -1, 5, 7, -1, 10, 12, 14, -1, 17, 19, 21, -1, 24, 26, 28, -1):
        if place < 0:
            y = functional.max_pool2d(y, 2)
        else:
            y = torch.relu(functional.conv2d(y, w[f"features.{place}.weight"], w[f"features.{place}.bias"], padding=1))
    y = y.flatten(1)
    for place in (0, 3, 6):
        y = y @ w[f"classifier.{place}.weight"].T + w[f"classifier.{place}.bias"]
        y = torch.relu(y) if place < 6 else y
    model = load_vgg(write(tmp_path, tensors))
    assert (model.image_size, len(model.stages[2])) == (64, 3)
    found = jax.jit(nnx_apply(model))(nnx_params(model), x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, y.numpy(), rtol=1e-3, atol=1e-4)
    keras = load_vgg(write(tmp_path, keras_weights(tensors, 2)))
    jax.tree.map(np.testing.assert_array_equal, nnx_params(keras), nnx_params(model))


def test_vgg19_is_told_by_its_convolutions(tmp_path):
    model = load_vgg(write(tmp_path, torchvision_weights(19)))
    np.testing.assert_array_equal(model.conv5_4.bias[...], torchvision_weights(19)["features.34.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.bias": None}, "is no VGG of torchvision or Keras: it lacks one of features.0.bias"),
        ({"features.28.weight": None}, "has 12 convolutions: VGG16 has 13 and VGG19 has 16"),
        ({"classifier.0.weight": np.zeros(3, np.float32)}, "classifier.0.weight must have two axes"),
        (
            {"features.5.weight": np.zeros((8, 4, 5, 5), np.float32)},
            r"features\.5\.weight has shape \(8, 4, 5, 5\) \(.*\), conv2_1/kernel needs",
        ),
        ({"bn.weight": np.zeros(3, np.float32)}, r"bn\.weight \(3,\) has no place in the network"),
        ({"classifier.3.bias": None}, r"classifier\.3\.bias is missing \(for fc2/bias, \(16,\)\)"),
        (
            {"classifier.0.weight": np.zeros((16, 33), np.float32)},
            r"0\.weight has shape \(16, 33\) \(.*\), fc1/kernel needs",
        ),
    ],
)
def test_weights_of_another_network(tmp_path, change, message):
    tensors = {name: tensor for name, tensor in (torchvision_weights() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load_vgg(write(tmp_path, tensors))
