"""Biases found behind products, by what becomes of the mean when a leaf is changed and its bias corrected."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bqjax.sensitivity.curvature import output_curvature

rng = np.random.default_rng(0)


def normal(*shape):
    return np.asarray(rng.normal(size=shape), np.float32)


X = normal(6, 5, 4)


def corrected(outputs, params, leaf, **settings):
    """The curvature, and the parameters with ``leaf`` changed and its bias corrected for the change of the mean."""
    found = output_curvature(outputs, params, [X], key=jax.random.key(0), draws=1, **settings)
    new = normal(*params[leaf].shape)
    own, shift = found[leaf], found.shifts[leaf]
    moved = np.einsum("gri,gi->gr", own.layout.to_rows(new - params[leaf]), own.mean)
    bias = np.array(params[shift.bias])
    np.add.at(bias.reshape(-1), shift.entries, -shift.gain * moved)
    assert own.centred
    return found, {**params, leaf: new, shift.bias: bias}


def norm(y, p):  # BatchNorm as it is in evaluation
    return (y - p["mean"][None, None]) * (p["scale"] * lax.rsqrt(p["var"] + 0.1))[None, None] + p["shift"][None, None]


LINEAR = {
    "bias": ({"w": (4, 3), "b": (3,)}, lambda p, x: x @ p["w"] + p["b"][None, None]),
    "subtracted": ({"w": (4, 3), "b": (3,)}, lambda p, x: p["b"][None, None] - 2 * (x @ p["w"])),
    "within a call": ({"w": (4, 3), "b": (3,)}, lambda p, x: jax.jit(lambda y, b: y * 2 + b[None, None])(x @ p["w"], p["b"])),
    "attention": ({"w": (4, 2, 3), "b": (2, 3)}, lambda p, x: jnp.einsum("nti,ihk->nthk", x, p["w"]) + p["b"][None, None]),
    "bias of one axis": ({"w": (4, 2, 3), "b": (6,)}, lambda p, x: x @ p["w"].reshape(4, 6) + p["b"][None, None]),
    "from the left": ({"w": (3, 4), "b": (3, 1)}, lambda p, x: p["w"] @ x.swapaxes(1, 2) + p["b"][None]),
    "parts": (
        {"w": (4, 6), "b": (6,)},
        lambda p, x: (x @ p["w"][:, :2] + p["b"][None, None, :2], x @ p["w"][:, 2:] + p["b"][None, None, 2:]),
    ),
}


@pytest.mark.parametrize(("case", "max_width"), [*((case, 9) for case in LINEAR), ("bias", 3)])
def test_the_mean_comes_back(case, max_width):
    shapes, apply = LINEAR[case]
    params = {name: normal(*shape) for name, shape in shapes.items()}

    def outputs(p, x):
        found = apply(p, x)
        return jnp.concatenate(found, -1) if isinstance(found, tuple) else found

    _, new = corrected(outputs, params, "w", max_width=max_width)
    axes = (0, 2) if case == "from the left" else (0, 1)
    np.testing.assert_allclose(outputs(new, X).mean(axes), outputs(params, X).mean(axes), rtol=1e-4, atol=1e-4)
    assert not np.allclose(outputs({**new, "b": params["b"]}, X).mean(axes), outputs(params, X).mean(axes), atol=1e-2)


def test_batch_norm_takes_up_the_mean():
    params = {"w": normal(4, 3), "shift": normal(3), "scale": normal(3)}
    fixed = {"mean": normal(3), "var": np.abs(normal(3))}
    outputs = lambda p, x: norm(x @ p["w"], {**p, **fixed})  # noqa: E731
    found, new = corrected(outputs, params, "w")
    assert found.shifts["w"].bias == "shift"
    np.testing.assert_allclose(outputs(new, X).mean((0, 1)), outputs(params, X).mean((0, 1)), rtol=1e-4, atol=1e-4)


def test_stacked_layers_have_stacked_biases():
    params = {"w": normal(3, 4, 4), "b": normal(3, 4)}
    layer = lambda x, own: (jnp.tanh(x @ own["w"] + own["b"][None, None]), None)  # noqa: E731
    found = output_curvature(lambda p, x: lax.scan(layer, x, p)[0], params, [X], key=jax.random.key(0), draws=1)
    np.testing.assert_array_equal(found.shifts["w"].entries, np.arange(12).reshape(3, 4))
    assert found["w"].centred and (found.shifts["w"].gain == 1).all()


NONE = {
    "no bias": lambda p, x: jnp.tanh(x @ p["w"]),
    "read twice": lambda p, x: (y := x @ p["w"]) + p["b"][None, None] + jnp.tanh(y),
    "after a non-linearity": lambda p, x: jnp.tanh(x @ p["w"]) + p["b"][None, None],
    "data added": lambda p, x: x @ p["w"] * x.sum() + p["b"][None, None],
    "one bias for all": lambda p, x: x @ p["w"] + p["b"][0],
    "behind one of two uses": lambda p, x: x @ p["w"] + p["b"][None, None] + jnp.tanh(jnp.tanh(x) @ p["w"]),
    "split": lambda p, x: jnp.concatenate(jnp.split(x @ p["w"], 2, -1)[::-1], -1) + p["b"][None, None],
    "in a branch": lambda p, x: lax.cond(x[0, 0, 0] > 9, lambda x: x, lambda x: x @ p["w"] + p["b"][None, None], x),
}


@pytest.mark.parametrize("case", NONE)
def test_no_bias_no_centring(case):
    params = {"w": normal(4, 4), "b": normal(4)}
    found = output_curvature(NONE[case], params, [X], key=jax.random.key(0), draws=1, names=["w"])
    assert not found["w"].centred and not found.shifts


def test_flax_convolution_and_batch_norm():
    from bqjax.adapters.flax import nnx_apply, nnx_params

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 3, (2,), use_bias=False, padding="VALID", rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.head = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))))

    net = Net(nnx.Rngs(0))
    found = output_curvature(nnx_apply(net), nnx_params(net), [X], key=jax.random.key(0), draws=1)
    assert {name: shift.bias for name, shift in found.shifts.items()} == {"conv/kernel": "norm/bias", "head/kernel": "head/bias"}
