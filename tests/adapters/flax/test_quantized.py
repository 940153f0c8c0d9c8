"""Quantized layers in NNX and Linen networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from bqjax.adapters.flax import calibrate, linen_quantize, nnx_apply, nnx_params, quantize
from bqjax.adapters.flax.quantized import QuantizedConv, QuantizerParam, quantized_layers, set_quantizers
from bqjax.core.rules import Rule
from bqjax.core.tree import named_leaves
from bqjax.models.resnet import CifarResNet, load_resnet, resnet_inputs
from bqjax.quantizers import QuantizerConfig

X = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
FIRST_AND_LAST = (Rule("conv1", skip=True), Rule("linear", skip=True))


@pytest.fixture(scope="module")
def resnet():
    """With random weights; ResNet-8 has every kind of layer that ResNet-20 has."""
    model = nnx.jit(lambda: CifarResNet(8, rngs=nnx.Rngs(0)))()
    train = nnx.jit(lambda m, x: m(x))
    for seed in range(20):  # running statistics that fit the network
        train(model, np.random.default_rng(seed).normal(size=X.shape).astype(np.float32))
    return model


def test_resnet_at_eight_bits_is_the_float_network_nearly(resnet):
    before = nnx_params(resnet)
    small, info = quantize(resnet, [*FIRST_AND_LAST, Rule("*", QuantizerConfig())])
    assert len(info.taken) == 6
    assert info.left == {"conv1": "skipped by rule 'conv1'", "linear": "skipped by rule 'linear'"}
    small = calibrate(small, X)
    jax.tree.map(np.testing.assert_array_equal, nnx_params(resnet), before)
    exact, rounded = (jax.jit(nnx_apply(m))(nnx_params(m), X) for m in (resnet, small))
    assert np.linalg.norm(rounded - exact) < 0.1 * np.linalg.norm(exact)
    assert not quantized_layers(resnet)
    scalars = nnx.to_pure_dict(nnx.state(small, QuantizerParam))
    assert len(jax.tree.leaves(scalars)) == 6 * 5
    assert sorted(scalars["layer1"][0]["conv1"]) == [
        *("activation_lower", "activation_upper", "scale", "weight_lower", "weight_upper"),
    ]


class Small(nnx.Module):
    def __init__(self):
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        self.bn1 = nnx.BatchNorm(8, rngs=nnx.Rngs(1))
        self.conv2 = nnx.Conv(8, 8, (3, 3), rngs=nnx.Rngs(2))
        self.linear = nnx.Linear(8, 4, rngs=nnx.Rngs(3))

    def __call__(self, x):
        return self.linear(self.conv2(nnx.relu(self.bn1(self.conv1(x)))).mean(axis=(1, 2)))


@pytest.mark.parametrize("rounding", ["ewgs", "dsq", pytest.param("irnet", marks=pytest.mark.slow)])
def test_gradients_in_training_mode_are_finite(rounding):
    config = QuantizerConfig(weight_bits=1, activation_bits=1, rounding=rounding)
    small, _ = quantize(nnx.jit(Small)(), [*FIRST_AND_LAST, Rule("*", config)])
    small = calibrate(small, X)
    set_quantizers(small, progress=0.5, delta=0.1)
    mean = np.asarray(small.bn1.mean[...])
    grads = nnx.to_pure_dict(nnx.jit(nnx.grad(lambda m, x: jnp.mean(m(x) ** 2)))(small, X))
    assert not np.array_equal(mean, small.bn1.mean[...])
    for name, gradient in named_leaves(grads).items():
        assert np.isfinite(gradient).all(), name
        assert np.any(gradient != 0) or "activation_lower" in name, name


@pytest.mark.slow
@pytest.mark.data
def test_trained_resnet_keeps_its_answers(data_dir):
    from train.data.tfds import cifar10

    model = load_resnet(data_dir / "weights" / "resnet20_cifar10.safetensors")
    images, labels = (a[:250] for a in cifar10(data_dir, "test"))
    inputs = resnet_inputs(images)
    small, _ = quantize(model, QuantizerConfig(weight_start="range"))
    small = calibrate(small, resnet_inputs(cifar10(data_dir, "train")[0][:128]))
    before, after = ((jax.jit(nnx_apply(m))(nnx_params(m), inputs).argmax(1) == labels).mean() for m in (model, small))
    assert abs(after - before) <= 0.04


def test_layers_keep_what_else_they_are():
    """Padding, strides, dilation, groups, bias and batch dimensions are the layer's own."""
    for settings in (
        {"padding": "CIRCULAR", "strides": 2},
        {"padding": ((2, 1), (0, 3)), "kernel_dilation": 2, "use_bias": False},
        {"feature_group_count": 3, "padding": "VALID"},
    ):
        layer = nnx.Conv(3, 6, (3, 3), **settings, rngs=nnx.Rngs(1))
        if layer.bias is not None:
            layer.bias[...] = jnp.arange(6.0)
        small, _ = quantize(nnx.Sequential(layer), QuantizerConfig(weight_bits=12, activation_bits=12))
        small = calibrate(small, X)
        assert isinstance(small.layers[0], QuantizedConv)
        np.testing.assert_allclose(small(X[None]), layer(X[None]), atol=0.25)  # what lies outside of three deviations
        assert np.mean(np.abs(small(X) - layer(X))) < 0.02


def test_a_shared_layer_stays_shared_and_calibration_is_of_its_first_call():
    class Net(nnx.Module):
        def __init__(self):
            self.a = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.b = self.a

        def __call__(self, x):
            return self.b(10 * self.a(x))

    small, info = quantize(Net(), QuantizerConfig())
    assert list(info.taken) == ["a"]
    assert small.a is small.b
    small = calibrate(small, X[0, 0])
    np.testing.assert_allclose(small.a.activation_lower[...], X[0, 0].min())


def test_weights_only_needs_no_calibration():
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    small, _ = quantize(model, QuantizerConfig(weight_bits=8, activation_bits=None))
    np.testing.assert_allclose(small(X), model(X), atol=0.05)


def test_what_cannot_be_quantized_is_listed_or_refused():
    class Own(nnx.Linear):
        pass

    model = nnx.Sequential(Own(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    small, info = quantize(model, QuantizerConfig())
    assert info.left == {"layers/0": "a Own, neither exactly nnx.Conv nor nnx.Linear"}
    with pytest.raises(ValueError, match=r"no start values yet: model = calibrate\(model, batch\)"):
        small(X)
    with pytest.raises(ValueError, match="'conv9' matches no leaf"):
        quantize(model, [Rule("conv9"), Rule("*")])
    with pytest.raises(ValueError, match="already quantized"):
        quantize(small, QuantizerConfig())
    with pytest.raises(ValueError, match="itself a Linear"):
        quantize(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), QuantizerConfig())
    with pytest.raises(ValueError, match=r"no nnx\.Conv or nnx\.Linear"):
        quantize(nnx.Sequential(nnx.relu), QuantizerConfig())
    with pytest.raises(ValueError, match="must be a QuantizerConfig, got 8"):
        quantize(model, [Rule("*", 8)])
    with pytest.raises(ValueError, match="no quantized layers"):
        calibrate(model, X)
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrate(small, X * np.nan)
    with pytest.raises(ValueError, match=r"delta names layers \['conv'\]"):
        set_quantizers(small, delta={"conv": 0.1})
    masked = nnx.Sequential(nnx.Conv(3, 3, (1, 1), mask=jnp.ones((1, 1, 3, 3)), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="has a mask"):
        quantize(masked, QuantizerConfig())


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Conv(8, (3, 3))(x)))
        x = linen.relu(linen.Conv(8, (3, 3), strides=2)(x))
        return linen.Dense(5)(x.mean(axis=(1, 2)))


def test_linen():
    module = LinenNet()
    variables = module.init(jax.random.key(0), X)
    small = linen_quantize(module, variables, [Rule("Conv_0", skip=True), Rule("*", QuantizerConfig())], X, train=False)
    assert sorted(small.params["quantizers"]) == sorted(small.taken) == ["Conv_1", "Dense_0"]
    assert small.left == {"Conv_0": "skipped by rule 'Conv_0'"}
    exact, rounded = module.apply(variables, X, train=False), jax.jit(small.apply)(small.params, X)
    assert np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)
    out, state = small.apply(small.params, X, train=True, mutable=["batch_stats"])
    assert out.shape == (8, 5)
    assert not np.array_equal(state["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(8))
    again = small.apply(small.params, X, variables=state)
    assert not np.array_equal(again, rounded)
    grads = jax.jit(jax.grad(lambda p: jnp.mean(small.apply(p, X, delta=0.1) ** 2)))(small.params)
    assert jax.tree.structure(grads) == jax.tree.structure(small.params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    with pytest.raises(ValueError, match="'Conv_7' matches no leaf"):
        linen_quantize(module, variables, [Rule("Conv_7")], X, train=False)
    with pytest.raises(ValueError, match=r"calls no linen\.Conv"):
        linen_quantize(linen.Sequential([linen.relu]), {"params": {}}, QuantizerConfig(), X)


def test_linen_and_nnx_agree():
    """The same weights, rounded in either way, give the same output."""
    x = X[:, 0, 0]
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    module = linen.Sequential([linen.Dense(4)])
    params = {"params": {"layers_0": nnx_params(model)["layers"][0]}}
    config = QuantizerConfig(weight_bits=2, activation_bits=3)
    small = linen_quantize(module, params, config, x)
    other = calibrate(quantize(model, config)[0], x)
    np.testing.assert_allclose(small.apply(small.params, x), other(x), rtol=1e-5, atol=1e-6)
