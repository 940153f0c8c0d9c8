"""Equalized output channels: the same function, one size, and what cannot be equalized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import equalize_channels
from bqjax.adapters.flax.equalize import batch_norms


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(4, epsilon=1e-2, rngs=rngs)  # an epsilon that shows where it is not made up for
        self.conv2 = nnx.Conv(4, 6, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(6, rngs=rngs)
        self.linear = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        return self.linear(nnx.relu(self.bn2(self.conv2(x))).mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    net = Net(nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for conv, bn in ((net.conv1, net.bn1), (net.conv2, net.bn2)):
        n = bn.num_features
        conv.kernel[...] = conv.kernel[...] * rng.uniform(0.05, 3, (1, 1, 1, n)).astype(np.float32)
        bn.mean[...], bn.var[...] = jnp.asarray(rng.normal(size=n), "float32"), jnp.asarray(rng.uniform(0.01, 2, n), "float32")
        bn.scale[...] = jnp.asarray(rng.normal(size=n), "float32")
    return net


run = nnx.jit(lambda net, x: net(x))


def outputs(net):
    x = jax.random.normal(jax.random.key(2), (5, 8, 8, 3))
    return np.asarray(run(nnx.view(net, use_running_average=True), x))


def sizes(layer):
    return np.sqrt(np.square(np.asarray(layer.kernel[...])).mean((0, 1, 2)))


def test_the_function_is_the_same_and_channels_are_of_one_size(net):
    norms = batch_norms(net, ["conv1", "conv2"])
    assert norms == {"conv1": "bn1", "conv2": "bn2"}
    before = outputs(net)
    same = equalize_channels(net, norms)
    np.testing.assert_allclose(outputs(same), before, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs(net), before)  # the model that was given is as it was
    for old, new in ((net.conv1, same.conv1), (net.conv2, same.conv2)):
        expected = np.sqrt(np.square(np.asarray(old.kernel[...])).mean())
        np.testing.assert_allclose(sizes(new), expected, rtol=1e-5)


def test_a_group_has_one_size(net):
    together = equalize_channels(net, {"conv1": "bn1", "conv2": "bn2"}, {"conv1": "g", "conv2": "g"})
    whole = np.concatenate([np.asarray(c.kernel[...]).ravel() for c in (net.conv1, net.conv2)])
    np.testing.assert_allclose(
        np.concatenate([sizes(together.conv1), sizes(together.conv2)]), np.sqrt(np.square(whole).mean()), rtol=1e-5
    )
    np.testing.assert_allclose(outputs(together), outputs(net), rtol=1e-4, atol=1e-5)


def test_a_channel_of_zeros_stays_zero(net):
    net = nnx.clone(net)
    net.conv1.kernel[...] = net.conv1.kernel[...].at[..., 2].set(0)
    same = equalize_channels(net, {"conv1": "bn1"})
    assert not same.conv1.kernel[..., 2].any()
    np.testing.assert_allclose(outputs(same), outputs(net), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ({"linear": "bn2"}, "'linear' must have a kernel and no bias"),
        ({"nothing": "bn2"}, "'nothing' must have a kernel and no bias"),
        ({"conv1": "bn2"}, "'bn2' must be a BatchNorm with a scale, of the 4 output channels of 'conv1'"),
        ({"conv1": "conv2"}, "'conv2' must be a BatchNorm"),
    ],
)
def test_what_does_not_fit_is_refused(net, norms, message):
    with pytest.raises(ValueError, match=message):
        equalize_channels(net, norms)


def test_layers_without_batch_norm_are_named(net):
    with pytest.raises(ValueError, match="'linear' has no BatchNorm beside it"):
        batch_norms(net, ["conv1", "linear"])
