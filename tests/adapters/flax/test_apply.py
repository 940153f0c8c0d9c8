"""NNX and Linen networks as plain pytrees and pure functions, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.core import freeze

import bqjax
from bqjax.adapters.flax import linen_apply, nnx_apply, nnx_params, nnx_with_params
from bqjax.core.leaves import Clustered
from bqjax.core.tree import named_leaves


class Calls(nnx.Variable):
    pass


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = Calls(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        x = self.norm(self.conv(x)).mean(axis=(1, 2))
        for layer in self.layers:
            x = x + layer(x)
        return self.dropout(x)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(use_running_average=not train)(linen.Conv(4, (3, 3))(x))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(x.mean(axis=(1, 2))))


X = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)


run = nnx.jit(lambda net, x: net(x))


@pytest.fixture
def model():
    net = Net(rngs=nnx.Rngs(0))
    run(net, X)  # running statistics that differ from their start
    return net


def test_params_are_plain_and_named_like_the_layers(model):
    params = nnx_params(model)
    assert type(params) is dict
    assert list(params["layers"]) == list(range(11))
    shapes = {name: leaf.shape for name, leaf in named_leaves(params).items()}
    assert shapes["conv/kernel"] == (3, 3, 1, 4)
    assert shapes["layers/10/kernel"] == (4, 4)
    assert len(shapes) == 1 + 2 + 22
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_apply_is_the_model_in_evaluation_mode(model):
    params, apply = nnx_params(model), nnx_apply(model)
    calls, mean = model.calls[...], np.asarray(model.norm.mean[...])
    first, second = apply(params, X), jax.jit(apply)(params, X)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first, apply(params, X))
    assert model.calls[...] == calls
    np.testing.assert_array_equal(model.norm.mean[...], mean)
    assert not model.norm.use_running_average
    assert not model.dropout.deterministic
    model.eval()
    np.testing.assert_allclose(first, model(X), rtol=1e-5, atol=1e-6)


def test_apply_keeps_what_it_closed_over(model):
    params, apply = nnx_params(model), nnx_apply(model)
    before = apply(params, X)
    model.norm.mean[...] = model.norm.mean[...] + 1
    model.layers[0].kernel[...] = jnp.zeros((4, 4))
    np.testing.assert_array_equal(apply(params, X), before)


def test_apply_under_vmap_and_grad(model):
    params, apply = nnx_params(model), nnx_apply(model)
    both = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    out = jax.jit(jax.vmap(apply, in_axes=(0, None)))(both, X)
    np.testing.assert_allclose(out[1], apply(jax.tree.map(lambda a: 2 * a, params), X), rtol=1e-4, atol=1e-4)
    grads = jax.jit(jax.grad(lambda p: apply(p, X).sum()))(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_string_keys_fit_as_well_in_any_order(model):
    params, apply = nnx_params(model), nnx_apply(model)
    renamed = params | {"layers": {str(i): params["layers"][i] for i in range(11)}}
    np.testing.assert_array_equal(apply(renamed, X), apply(params, X))
    assert list(nnx_params(nnx_with_params(model, renamed))["layers"]) == list(range(11))


def test_with_params_round_trip(model):
    doubled = jax.tree.map(lambda a: 2 * a, nnx_params(model))
    before = nnx_params(model)
    other = nnx_with_params(model, doubled)
    assert type(other) is Net
    assert not other.norm.use_running_average
    jax.tree.map(np.testing.assert_array_equal, nnx_params(other), doubled)
    jax.tree.map(np.testing.assert_array_equal, nnx_params(model), before)
    other(X)
    assert other.calls[...] == model.calls[...] + 1
    np.testing.assert_array_equal(nnx_apply(model)(doubled, X), nnx_apply(nnx_with_params(model, doubled))(doubled, X))


def test_compressed_parameters(model):
    params, apply = nnx_params(model), nnx_apply(model)
    codebook = np.array([[-0.5], [0.5]], np.float32)
    leaf = Clustered(np.zeros(16, np.uint8), codebook, (4, 4), np.float32)
    tree = params | {"layers": params["layers"] | {3: params["layers"][3] | {"kernel": leaf}}}
    with pytest.raises(ValueError, match=r"'layers/3/kernel' is compressed: pass bqjax\.decode"):
        apply(tree, X)
    assert apply(bqjax.decode(tree), X).shape == (5, 4)


@pytest.mark.parametrize("run", [lambda m, p: nnx_apply(m)(p, X), nnx_with_params])
def test_params_that_do_not_fit(model, run):
    params = nnx_params(model)
    with pytest.raises(ValueError, match=r"'conv/kernel' must have shape \(3, 3, 1, 4\), got \(3, 3, 4\)"):
        run(model, params | {"conv": {"kernel": jnp.zeros((3, 3, 4))}})
    with pytest.raises(ValueError, match=r"parameter 'norm/bias' of shape \(4,\), which params lack"):
        run(model, {name: value for name, value in params.items() if name != "norm"})
    with pytest.raises(ValueError, match="leaf 'conv/bias', which the model does not"):
        run(model, params | {"conv": params["conv"] | {"bias": jnp.zeros(4)}})


def test_a_model_without_parameters():
    with pytest.raises(ValueError, match=r"Dropout has no nnx\.Param"):
        nnx_apply(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))


def test_linen():
    module = LinenNet()
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    params, apply = linen_apply(module, variables, train=False)
    assert sorted(params) == ["BatchNorm_0", "Conv_0", "Dense_0"]
    np.testing.assert_array_equal(apply(params, X), module.apply(variables, X, train=False))
    assert jax.jit(apply)(params, X).shape == (5, 3)
    zeroed = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(apply(zeroed, X), 0)
    with pytest.raises(ValueError, match=r"'Dense_0/kernel' must have shape \(4, 3\), got \(3, 4\)"):
        apply(params | {"Dense_0": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(3)}}, X)


def test_linen_frozen_variables():
    module = linen.Dense(3)
    variables = module.init(jax.random.key(0), X[:, 0, :, 0])
    params, apply = linen_apply(module, freeze(variables))
    assert type(params) is dict
    np.testing.assert_array_equal(apply(params, X[:, 0, :, 0]), module.apply(variables, X[:, 0, :, 0]))


def test_linen_without_params():
    with pytest.raises(ValueError, match=r"no \"params\", only \['batch_stats'\]"):
        linen_apply(LinenNet(), {"batch_stats": {}})
