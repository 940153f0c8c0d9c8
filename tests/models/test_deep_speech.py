"""DeepSpeech 1 and 2: published sizes, what padding must not do, and a pass through PyTorch's convolution."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.tree import named_leaves
from bqjax.models.deep_speech import DeepSpeech1, DeepSpeech2, clipped_relu
from bqjax.sensitivity.slicing import split, trace

SMALL = {
    DeepSpeech1: {"features": 5, "characters": 4, "hidden": 8, "cells": 6, "context": 2},
    DeepSpeech2: {
        "features": 9,
        "characters": 4,
        "channels": (3, 2),
        "kernels": ((5, 3), (3, 5)),
        "strides": ((2, 2), (1, 2)),
        "layers": 2,
        "cells": 6,
        "dropout": 0.1,
    },
}
MIB = 2**20


def sizes(network, **arguments):
    params = nnx_params(nnx.eval_shape(lambda: network(**arguments, rngs=nnx.Rngs(0))))
    return {name: leaf.size for name, leaf in named_leaves(params).items()}


@functools.cache
def small(network, **changes):
    """A small network with values from NumPy, and running statistics that are not those of a fresh one."""
    arguments = SMALL[network] | changes
    model = nnx.eval_shape(lambda: network(**arguments, rngs=nnx.Rngs(0)))
    model.dropout = nnx.Dropout(0.0, rngs=nnx.Rngs(0))
    graph, state, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    rng = np.random.default_rng(0)

    def values(leaf):
        spread = np.sqrt(1 / max(1, np.prod(leaf.shape[:-1])))
        value = rng.normal(scale=spread, size=leaf.shape) if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(value, jnp.float32)

    return nnx.merge(graph, jax.tree.map(values, nnx.to_pure_dict(state)), nnx.to_pure_dict(rest))


def inputs(network, t=11):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, t, SMALL[network]["features"])), jnp.float32)


@pytest.mark.parametrize(
    ("network", "arguments", "count", "published_mib"),
    [
        (DeepSpeech1, {}, 46_178_333, 181),
        (DeepSpeech1, {"cells": 2048, "bidirectional": False}, 47_224_861, 181),
        (DeepSpeech2, {}, 41_181_533, 158),
    ],
)
def test_published_sizes(network, arguments, count, published_mib):
    total = sum(sizes(network, **arguments).values())
    assert total == count
    # Within 5 %, whether the published megabytes are 2^20 or 10^6 bytes.
    for megabyte in (MIB, 1e6):
        assert abs(4 * total / megabyte / published_mib - 1) < 0.05


def test_names():
    names = sizes(DeepSpeech2, **SMALL[DeepSpeech2])
    assert names["rnn/0/forward/input/kernel"] == 2 * 3 * 18
    assert names["rnn/1/backward/recurrent/kernel"] == 6 * 18
    assert {"conv/0/conv/kernel", "conv/1/norm/scale", "rnn/0/backward/norm/bias", "norm/bias", "output/kernel"} <= set(names)
    names = sizes(DeepSpeech1, **SMALL[DeepSpeech1])
    assert names["dense1/kernel"] == 5 * 5 * 8
    assert {"dense2/bias", "dense3/kernel", "lstm/backward/recurrent/kernel", "dense5/kernel", "output/bias"} <= set(names)


def test_activation():
    assert clipped_relu(jnp.array([-1.0, 3.0, 30.0])).tolist() == [0.0, 3.0, 20.0]


@pytest.mark.parametrize("network", [DeepSpeech1, DeepSpeech2])
def test_padding_changes_nothing(network):
    """An even number of frames by itself, and padded to an odd one with what must not be read."""
    apply, params = jax.jit(nnx_apply(small(network))), nnx_params(small(network))
    x, lengths = inputs(network), jnp.array([6, 5])
    alone, out_lengths = apply(params, x[:, :6], lengths)
    padded, same = apply(params, x.at[0, 6:].set(jnp.nan).at[1, 5:].set(jnp.nan), lengths)
    assert same.tolist() == out_lengths.tolist()
    for i, n in enumerate(out_lengths):
        np.testing.assert_allclose(padded[i, :n], alone[i, :n], atol=1e-5)


@pytest.mark.parametrize("network", [DeepSpeech1, DeepSpeech2])
def test_training_ignores_padding_and_has_finite_gradients(network):
    model = small(network)
    x, lengths = inputs(network), jnp.array([11, 6])

    @nnx.jit
    def step(model, x):
        def loss(model):
            logits, lengths_out = model(x, lengths)
            return sum(jnp.sum(jnp.square(logits[i, : 3 + 0 * lengths_out[i].size])) for i in range(2))

        return nnx.value_and_grad(loss)(model)

    training = nnx.view(model, use_running_average=False, deterministic=True, raise_if_not_found=False)
    value, grads = step(nnx.clone(training), x)
    other, _ = step(nnx.clone(training), x.at[1, 6:].set(7.0))
    np.testing.assert_allclose(value, other, rtol=1e-5)
    leaves = named_leaves(nnx.to_pure_dict(grads))
    assert all(np.isfinite(leaf).all() for leaf in leaves.values())
    assert all(np.any(leaf) for name, leaf in leaves.items() if name.endswith("kernel"))


def test_context_window_by_definition():
    """The first layer sees the two frames on each side, zeros beyond the ends."""
    model = small(DeepSpeech1)
    x = np.asarray(inputs(DeepSpeech1, 7))[:1]
    seen = []
    model = nnx.clone(model)
    kernel = np.asarray(model.dense1.kernel[...])
    dense2 = model.dense2
    model.dense2 = lambda y: (seen.append(y), dense2(y))[1]
    nnx.view(model, deterministic=True)(jnp.asarray(x), jnp.array([7]))
    padded = np.pad(x[0], ((2, 2), (0, 0)))
    windows = np.stack([padded[i : i + 5].reshape(-1) for i in range(7)])
    expected = np.clip(windows @ kernel + np.asarray(model.dense1.bias[...])[None], 0, 20)
    np.testing.assert_allclose(seen[0][0], expected, atol=1e-5)


def test_convolutions_agree_with_pytorch():
    torch = pytest.importorskip("torch")
    model = small(DeepSpeech2)
    frozen = nnx.view(model, use_running_average=True, deterministic=True)
    x, lengths = inputs(DeepSpeech2), jnp.array([11, 11])
    y, y_torch = x[..., None], torch.tensor(np.asarray(x))[:, None]
    for layer in frozen.conv:
        y, lengths = nnx.jit(lambda layer, y, lengths: layer(y, lengths))(layer, y, lengths)
        kernel = torch.tensor(np.asarray(layer.conv.kernel[...]).transpose(3, 2, 0, 1))
        padding = [size // 2 for size in kernel.shape[2:]]
        y_torch = torch.nn.functional.conv2d(y_torch, kernel, stride=layer.conv.strides, padding=padding)
        mean, var, scale, bias = (
            torch.tensor(np.asarray(v[...])) for v in (layer.norm.mean, layer.norm.var, layer.norm.scale, layer.norm.bias)
        )
        y_torch = torch.nn.functional.hardtanh(torch.nn.functional.batch_norm(y_torch, mean, var, scale, bias), 0, 20)
    assert lengths.tolist() == [6, 6] == frozen.out_lengths(jnp.array([11, 11])).tolist()
    np.testing.assert_allclose(y, y_torch.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (DeepSpeech1, {"cells": 0}, "cells must be at least 1, got 0"),
        (DeepSpeech1, {"context": -1}, "context must be at least 0 frames, got -1"),
        (DeepSpeech2, {"layers": 0}, "layers must be at least 1, got 0"),
        (DeepSpeech2, {"channels": (2,)}, "must be as many"),
        (DeepSpeech2, {"kernels": ((4, 3), (3, 3))}, "kernels must be odd"),
    ],
)
def test_arguments(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**SMALL[network] | arguments, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("network", [DeepSpeech1, DeepSpeech2])
def test_inputs_that_do_not_fit(network):
    x = inputs(network)
    for bad, lengths in ((x[..., :3], jnp.ones(2, int)), (x[0], jnp.ones(2, int)), (x, jnp.ones(3, int))):
        with pytest.raises(ValueError, match=r"inputs must be \[n, t, \d\] and lengths \[n\]"):
            small(network)(bad, lengths)


@functools.cache
def three_layers():
    """Parameters of a network of three recurrent layers, and its trace."""
    model = small(DeepSpeech2, layers=3)
    params, apply = nnx_params(model), nnx_apply(model)
    x, lengths = jax.ShapeDtypeStruct((2, 11, 9), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    return params, trace(lambda params, x, lengths: apply(params, x, lengths)[0], params, x, lengths)


@pytest.mark.parametrize(
    ("leaf", "before", "after"),
    [
        ("output/kernel", 6, 0),
        ("rnn/2/forward/recurrent/kernel", 5, 1),
        ("rnn/2/backward/input/kernel", 5, 1),
        ("rnn/1/forward/recurrent/kernel", 3, 3),
        ("conv/0/conv/kernel", 0, 6),
    ],
)
def test_perturbing_a_late_layer_keeps_what_earlier_ones_computed(leaf, before, after):
    """Recurrent layers are two scans each; only those at and behind the perturbed leaf run for each perturbation."""
    params, program = three_layers()
    names = list(named_leaves(params))
    parts = split(program, [names.index(leaf)])
    scans = [sum(step.equation.primitive.name == "scan" for step in steps) for steps in (parts.prefix_steps, parts.suffix_steps)]
    assert scans == [before, after]
    convolutions = [step.equation.primitive.name == "conv_general_dilated" for step in parts.suffix_steps]
    assert sum(convolutions) == (2 if leaf.startswith("conv") else 0)


def test_perturbed_recurrent_layers_score_as_full_forwards_do():
    """Through the split, against the network with the perturbed weights put in."""
    model = small(DeepSpeech2)
    params, apply = nnx_params(model), nnx_apply(model)
    x, lengths = inputs(DeepSpeech2), jnp.array([11, 7])
    flat, treedef = jax.tree.flatten((params, x, lengths))
    program = trace(lambda params, x, lengths: apply(params, x, lengths)[0], params, x, lengths)
    constants = list(program.constants.values())
    full = jax.jit(apply)
    for leaf in ("rnn/1/forward/recurrent/kernel", "output/kernel"):
        at = list(named_leaves(params)).index(leaf)
        parts = split(program, [at])
        fixed = flat[:at] + flat[at + 1 :]
        kept = jax.jit(parts.prefix)(constants, fixed)
        new = flat[at] * 1.5
        expected, _ = full(*jax.tree.unflatten(treedef, [*flat[:at], new, *flat[at + 1 :]]))
        np.testing.assert_allclose(jax.jit(parts.suffix)(kept, constants, fixed, [new]), expected, rtol=1e-5, atol=1e-5)
