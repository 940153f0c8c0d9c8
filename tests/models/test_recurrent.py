"""Recurrent layers: equal to Flax's own cells over the sequence without its padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.models.recurrent import GRU, LSTM, Bidirectional, valid_frames

CIN, CELLS = 3, 4
LENGTHS = np.array([6, 1, 4])
run = nnx.jit(lambda layer, x, valid: layer(x, valid))
step = nnx.jit(lambda cell, carry, x: cell(carry, x))


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, CIN)), jnp.float32)


def flax_outputs(layer, cell_class, frames):
    """Flax's cell with the layer's weights, frame by frame over one sequence ``[t, CIN]``."""
    cell = cell_class(CIN, CELLS, rngs=nnx.Rngs(0))
    for part, (kernel, bias) in {
        "dense_i": (layer.input.kernel, layer.input.bias),
        "dense_h": (layer.recurrent.kernel, None),
    }.items():
        dense = getattr(cell, part)
        dense.kernel[...] = kernel[...]
        if cell_class is nnx.GRUCell and bias is not None:
            dense.bias[...] = bias[...]
        if cell_class is nnx.OptimizedLSTMCell and part == "dense_h":
            dense.bias[...] = layer.input.bias[...]
    carry, out = cell.initialize_carry((1, CIN), nnx.Rngs(0)), []
    for frame in frames:
        carry, y = step(cell, carry, frame[None])
        out.append(y[0])
    return np.stack(out)


@pytest.mark.parametrize(("layer_class", "cell_class"), [(GRU, nnx.GRUCell), (LSTM, nnx.OptimizedLSTMCell)])
@pytest.mark.parametrize("reverse", [False, True])
def test_equal_to_flax_on_each_sequence_by_itself(x, layer_class, cell_class, reverse):
    layer = layer_class(CIN, CELLS, reverse=reverse, rngs=nnx.Rngs(1))
    layer.input.bias[...] = jnp.linspace(-1, 1, layer.gates * CELLS)
    out = run(layer, x, valid_frames(jnp.asarray(LENGTHS), 6))
    for i, length in enumerate(LENGTHS):
        frames = x[i, :length]
        expected = flax_outputs(layer, cell_class, frames[::-1] if reverse else frames)
        np.testing.assert_allclose(out[i, :length], expected[::-1] if reverse else expected, atol=1e-6)
        assert not out[i, length:].any()


def test_batch_norm_sees_valid_frames_only(x):
    layer = GRU(CIN, CELLS, normalize=True, rngs=nnx.Rngs(1))
    valid = valid_frames(jnp.asarray(LENGTHS), 6)
    run(layer, x, valid)
    product = np.asarray(x)[np.asarray(valid)] @ np.asarray(layer.input.kernel[...])
    np.testing.assert_allclose(layer.norm.mean[...], 0.1 * product.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.norm.var[...], 0.9 + 0.1 * product.var(axis=0), rtol=1e-4)


def test_both_directions_are_added(x):
    layer = Bidirectional(LSTM, CIN, CELLS, rngs=nnx.Rngs(1))
    valid = valid_frames(jnp.asarray(LENGTHS), 6)
    expected = run(layer.forward, x, valid) + run(layer.backward, x, valid)
    np.testing.assert_allclose(run(layer, x, valid), expected, atol=1e-6)
    first = jax.jit(jax.grad(lambda x: layer(x, valid)[0, 0].sum()))(x)
    assert np.abs(first[0, 5]).max() > 0  # the last frame reaches the first output
    assert not first[1:].any()
