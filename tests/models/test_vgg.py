"""VGG: published numbers of parameters, computed without allocating them, and a small variant that runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.models.vgg import VGG
from bqjax.tree import named_leaves


def sizes(*args, **kwargs):
    params = nnx_params(nnx.eval_shape(lambda: VGG(*args, rngs=nnx.Rngs(0), **kwargs)))
    return {name: leaf.size for name, leaf in named_leaves(params).items()}


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
    np.testing.assert_allclose(run(params, images), nnx_apply(small(dropout=0.0))(params, images), rtol=1e-4, atol=1e-6)
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
