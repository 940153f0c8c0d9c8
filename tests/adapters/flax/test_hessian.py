"""EWGS's gradient scale of the layers of a network, where the Hessian is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import calibrate, hessian_deltas, quantize
from bqjax.core.rules import Rule
from bqjax.quantizers import QuantizerConfig

KEY = jax.random.key(0)


def test_one_layer_and_a_quadratic():
    """With unit vectors as inputs the Hessian of ``|x w|^2 / 2`` is diagonal: ``4 s^2`` for each rounded weight."""
    x = jnp.eye(3)
    model, _ = quantize(nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0))), QuantizerConfig(weight_bits=2, activation_bits=None))
    layer = model.layers[0]
    deltas, info = jax.jit(lambda: hessian_deltas(model, lambda model: jnp.sum(model(x) ** 2) / 2, KEY, samples=1, max_delta=9.0))()
    w, upper, scale = (np.asarray(v, np.float64) for v in (layer.kernel[...], layer.weight_upper[...], layer.scale[...]))
    unit = np.rint(3 * np.clip((w + upper) / (2 * upper), 0, 1)) / 3
    gradient = 2 * scale * scale * (2 * unit - 1)
    np.testing.assert_allclose(info["layers/0"].trace, 12 * 4 * scale**2, rtol=1e-5)
    np.testing.assert_allclose(deltas["layers/0"], 4 * scale**2 / (3 * gradient.std()), rtol=1e-4)


def test_curvature_reaches_layers_in_front_of_rounded_activations():
    x = jax.random.normal(KEY, (16, 3))
    layers = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 2, rngs=nnx.Rngs(1)), nnx.Linear(2, 2, rngs=nnx.Rngs(2))
    rules = [Rule("layers/3", skip=True), Rule("*", QuantizerConfig(weight_bits=1, activation_bits=2))]
    model = calibrate(quantize(nnx.Sequential(*layers), rules)[0], x)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    deltas, info = jax.jit(lambda: hessian_deltas(model, lambda model: jnp.mean(model(x) ** 2), KEY))()
    assert set(deltas) == set(info) == {"layers/0", "layers/2"}
    assert all(float(found.trace) > 0 for found in info.values())
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))


def test_nothing_to_measure():
    model, _ = quantize(nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), QuantizerConfig(weight_bits=1, rounding="dsq"))
    with pytest.raises(ValueError, match="Sequential has no layers whose weights are rounded by EWGS"):
        hessian_deltas(model, lambda model: jnp.zeros(()), KEY)
