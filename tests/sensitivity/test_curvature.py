"""Moments taken on the jaxpr against inputs captured by hand, for every way in which a leaf may enter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bqjax.sensitivity.curvature import output_curvature

rng = np.random.default_rng(0)


def normal(*shape):
    return np.asarray(rng.normal(size=shape), np.float32)


X = normal(6, 5, 4)  # [n, t, features]


def curvature(outputs, params, batches=(X,), **settings):
    return output_curvature(outputs, params, list(batches), key=jax.random.key(0), draws=1, **settings)


def by_hand(rows):
    """Second moment and mean of ``rows [..., d]`` over all but the last axis."""
    rows = np.asarray(rows, np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows / len(rows), rows.mean(0)


def check(leaf, *groups):
    """That a leaf's groups have the moments of these rows."""
    assert len(leaf.inputs) == len(groups) == leaf.layout.rows_shape[0]
    for own, mean, rows in zip(leaf.inputs, leaf.mean, groups, strict=True):
        second, first = by_hand(rows)
        np.testing.assert_allclose(own, second, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean, first, rtol=1e-4, atol=1e-5)
    assert leaf.inputs.dtype == leaf.mean.dtype == leaf.outputs.dtype == np.float32


def check_rows(leaf, kernel, apply, *groups):
    """That rows of the leaf times its inputs are what the network computes: layout and inputs in one order."""
    rows = leaf.layout.to_rows(np.asarray(kernel))
    got = np.stack([np.asarray(x).reshape(-1, x.shape[-1]) @ w.T for x, w in zip(groups, rows, strict=True)])
    np.testing.assert_allclose(np.sort(got.reshape(-1)), np.sort(np.asarray(apply).reshape(-1)), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(leaf.layout.to_leaf(rows), kernel)


DENSE = {
    "right": ((4, 3), lambda w, x: x @ w),
    "left": ((3, 4), lambda w, x: jnp.einsum("oi,nti->ont", w, x)),
    "transposed": ((3, 4), lambda w, x: x @ w.T),
    "attention": ((4, 2, 3), lambda w, x: jnp.einsum("nti,ihk->nhtk", x, w)),
    "reshaped": ((4, 6), lambda w, x: jnp.einsum("nti,ihk->nhtk", x, w.reshape(4, 2, 3))),
    "two contracted axes": ((2, 2, 3), lambda w, x: jnp.einsum("ntab,abo->nto", x.reshape(6, 5, 2, 2), w)),
    "axes swapped": ((2, 2, 3), lambda w, x: lax.dot_general(x.reshape(30, 2, 2), w, (((2, 1), (0, 1)), ((), ())))),
    "converted": ((4, 3), lambda w, x: x @ w.astype(jnp.bfloat16).astype(jnp.float32)),
    "repeated by vmap": ((4, 3), lambda w, x: jax.vmap(jnp.dot)(x, jnp.broadcast_to(w[None], (6, 4, 3)))),
    "jit and remat": ((4, 3), lambda w, x: jax.checkpoint(jax.jit(lambda x, w: x @ w))(x, w)),
}


@pytest.mark.parametrize("case", DENSE)
def test_dense(case):
    shape, apply = DENSE[case]
    w = normal(*shape)
    leaf = curvature(lambda p, x: apply(p["w"], x).reshape(6, -1), {"w": w})["w"]
    x = X.reshape(6, 5, 2, 2).swapaxes(2, 3).reshape(X.shape) if case == "axes swapped" else X
    check(leaf, x)
    assert leaf.rows == 30
    if case != "converted":
        check_rows(leaf, w, apply(w, X), x)


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, jnp.einsum("nti,nto->io", saved[0], g)))


def test_custom_rules_are_looked_into():
    check(curvature(lambda p, x: jax.nn.relu(product(x, p["w"])), {"w": normal(4, 3)})["w"], X)


def test_experts_are_groups():
    w = normal(2, 4, 3)
    apply = lambda w, x: jnp.einsum("nei,eio->neo", x, w)  # noqa: E731
    leaf = curvature(lambda p, x: apply(p["w"], x), {"w": w}, [X[:, :2]])["w"]
    check(leaf, X[:, 0], X[:, 1])
    check_rows(leaf, w, apply(w, X[:, :2]), X[:, 0], X[:, 1])


CONV = {
    # x, kernel (spatial..., in, out), strides, padding, x dilation, kernel dilation, groups
    "same": ((2, 5, 6, 2), (3, 2, 2, 3), (1, 1), "SAME", (1, 1), (1, 1), 1),
    "strides and holes": ((2, 7, 6, 2), (2, 3, 2, 3), (2, 1), ((1, 2), (0, 1)), (1, 1), (2, 1), 1),
    "transposed": ((2, 3, 3, 2), (2, 3, 2, 3), (1, 1), ((1, 1), (2, 1)), (2, 2), (1, 1), 1),
    "groups": ((2, 5, 4, 4), (3, 1, 2, 6), (1, 2), "VALID", (1, 1), (1, 1), 2),
    "depthwise": ((2, 5, 4, 3), (3, 3, 1, 6), (1, 1), "SAME", (1, 1), (1, 1), 3),
    "1-D": ((2, 9, 2), (3, 2, 3), (2,), "SAME", (1,), (1,), 1),
    "3-D": ((2, 3, 4, 3, 1), (2, 2, 3, 1, 2), (1, 2, 1), "VALID", (1, 1, 1), (1, 1, 1), 1),
}


@pytest.mark.parametrize("case", CONV)
def test_convolutions(case):
    x_shape, shape, strides, padding, x_holes, holes, groups = CONV[case]
    x, w = normal(*x_shape), normal(*shape)
    spatial = "DHW"[3 - len(strides) :]
    names = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def convolve(x, w, groups=groups):
        return lax.conv_general_dilated(x, w, strides, padding, x_holes, holes, dimension_numbers=names, feature_group_count=groups)

    # Each input of a window by itself: a convolution with one kernel entry at a time.
    inputs = shape[:-1]
    taps = np.eye(int(np.prod(inputs)), dtype=np.float32).reshape(-1, *inputs)
    patches = [
        np.stack([convolve(x[..., g * inputs[-1] : (g + 1) * inputs[-1]], tap[..., None], 1)[..., 0] for tap in taps], -1)
        for g in range(groups)
    ]
    leaf = curvature(lambda p, x: convolve(x, p["w"]), {"w": w}, [x])["w"]
    check(leaf, *patches)
    check_rows(leaf, w, convolve(x, w), *patches)


def test_other_orders_of_a_convolutions_axes():
    x, w = normal(2, 3, 5, 4), normal(2, 3, 2, 2)
    leaf = curvature(lambda p, x: lax.conv_general_dilated(x, p["w"], (1, 1), "VALID"), {"w": w}, [x])["w"]
    patches = lax.conv_general_dilated_patches(x, (2, 2), (1, 1), "VALID")
    check(leaf, np.moveaxis(patches, 1, -1))


def test_an_embedding_has_one_matrix_for_what_a_row_holds():
    """Against the Jacobian, row by row; probes are exact where each output depends on one entry of a row alone."""
    ids = np.array([[0, 3], [3, 1], [3, 3]])
    w = normal(5, 2)
    leaf = curvature(lambda p, i: p["w"][i] ** 2, {"w": w}, [ids])["w"]
    assert leaf.layout.rows_shape == (1, 5, 2) and leaf.inputs.shape == (1, 2, 2) and leaf.rows == 6 and not leaf.centred
    reads = np.array([1, 1, 0, 4, 0])
    diagonal = reads[:, None] * (2 * w) ** 2 / 3  # an example's
    importance = diagonal.sum(1)
    # Reads of one row by several outputs meet random signs; the rows that are read once are exact.
    np.testing.assert_allclose(leaf.outputs[0, :2] - leaf.outputs[0, 2], importance[:2], rtol=1e-4)
    np.testing.assert_allclose(np.trace(leaf.inputs[0]), 1, rtol=1e-5)
    # Rows that were never read count half of the mean row, and so much is added to all.
    assert leaf.outputs[0, 2] == leaf.outputs[0, 4] > 0
    np.testing.assert_allclose(leaf.outputs[0, 2], 0.5 * (leaf.outputs[0].mean() - leaf.outputs[0, 2]), rtol=1e-4)


def test_what_a_row_holds_is_seen_through_what_follows():
    mix = normal(3, 3)

    def outputs(p, i):
        return (p["w"][i] @ mix).sum(1)

    ids = np.array([[0], [1], [2], [1]])
    found = output_curvature(outputs, {"w": normal(4, 3)}, [ids], key=jax.random.key(0), draws=400)["w"]
    expected = mix @ mix.T
    np.testing.assert_allclose(found.inputs[0], expected / np.trace(expected), atol=0.05)
    weights = np.array([1, 2, 1, 0]) * np.trace(expected) / 4
    np.testing.assert_allclose(found.outputs[0], weights + 0.5 * weights.mean(), rtol=0.1)


def test_tied_leaves_take_the_mean_over_their_uses():
    def outputs(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"]

    w = normal(4, 4)
    check(curvature(outputs, {"w": w})["w"], np.concatenate([X, np.tanh(X @ w)]))
    ids = np.array([[0, 3], [3, 1]])
    found = curvature(lambda p, i: jnp.tanh(p["w"][i]) @ p["w"].T, {"w": w}, [ids])
    check(found["w"], np.tanh(w[ids]))
    assert "gather" in found.notes["w"]


def test_parts_of_a_fused_kernel_have_their_own_inputs():
    y = normal(6, 5, 4)

    def outputs(p, batch):  # six columns see x, three see y
        x, y = batch
        return jnp.concatenate([x @ p["w"][:, :6], y @ p["w"][:, 6:]], -1)

    w = normal(4, 9)
    leaf = curvature(outputs, {"w": w}, [(X, y)])["w"]
    check(leaf, X, X, y)
    check_rows(leaf, w, outputs({"w": w}, (X, y)), X, X, y)


def test_parts_of_the_inputs_are_groups():
    def outputs(p, x):  # a kernel of concatenated inputs, used in two parts and once as a whole
        return x[..., :2] @ p["w"][:2] + x[..., 2:] @ p["w"][2:] + jnp.flip(x, -1) @ p["w"]

    leaf = curvature(outputs, {"w": normal(4, 3)})["w"]
    flipped = X[..., ::-1]
    check(leaf, np.stack([X[..., :2], flipped[..., :2]]), np.stack([X[..., 2:], flipped[..., 2:]]))


def recurrent(p, x):
    """States before each step go with the recurrent kernel."""

    def step(state, x):
        return jnp.tanh(x @ p["in"] + state @ p["again"]), state

    return lax.scan(step, jnp.zeros((len(x), 3)), x.swapaxes(0, 1))


def test_a_recurrent_kernel_takes_the_mean_over_steps():
    params = {"in": normal(4, 3), "again": normal(3, 3)}
    found = curvature(lambda p, x: recurrent(p, x)[0], params)
    check(found["in"], X)
    check(found["again"], recurrent(params, X)[1])
    assert found["again"].rows == 30


def test_stacked_layers_have_moments_for_each_slice():
    params = {"w": normal(3, 4, 4), "b": normal(3, 4)}

    @jax.checkpoint
    def layer(x, own):
        return jnp.tanh(x @ own["w"] + own["b"][None, None]), x

    run = lambda p, x: lax.scan(layer, x, p, reverse=True)  # noqa: E731
    found = curvature(lambda p, x: run(p, x)[0], params)
    check(found["w"], *run(params, X)[1])
    assert found["w"].layout.groups == (0,)
    assert "'add'" in found.left["b"]


def test_loops_within_loops():
    """A stack of recurrent layers: slices of the outer scan, sums over steps of the inner one."""
    params = {"w": normal(2, 3, 3)}

    def layer(x, w):
        states = lax.scan(lambda s, x: (jnp.tanh(x + s @ w), s), jnp.zeros((6, 3)), x)[1]
        return states, states

    run = lambda p, x: lax.scan(layer, x.swapaxes(0, 1)[..., :3], p["w"])  # noqa: E731
    check(curvature(lambda p, x: run(p, x)[0].swapaxes(0, 1), params)["w"], *run(params, X)[1])


def test_branches_and_loops_of_unknown_length():
    def outputs(p, x):
        x = lax.cond(x[0, 0, 0] > 9, lambda x: x, lambda x: jnp.tanh(x @ p["w"]), x)
        return x

    w = normal(4, 4)
    check(curvature(outputs, {"w": w})["w"], X)

    def loop(p, x):
        return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["w"])), (0, x))[1]

    with pytest.raises(ValueError, match="while_loop"):  # which JAX does not differentiate in reverse
        curvature(loop, {"w": w})


def test_few_positions_come_close():
    x = normal(64, 50, 3)
    leaf = curvature(lambda p, x: x @ p["w"], {"w": normal(3, 2)}, [x, x], positions=400)["w"]
    assert leaf.rows == 800
    np.testing.assert_allclose(leaf.inputs[0], by_hand(x)[0], atol=0.2)


def test_wide_inputs_are_cut_to_blocks():
    x = normal(20, 10)
    leaf = curvature(lambda p, x: x @ p["w"], {"w": normal(10, 2)}, [x], max_width=4)["w"]
    assert leaf.layout.rows_shape == (3, 2, 4)
    padded = np.pad(x, ((0, 0), (0, 2)))
    check(leaf, padded[:, :4], padded[:, 4:8], padded[:, 8:])
    assert (np.diagonal(leaf.inputs, axis1=1, axis2=2)[~leaf.layout.real_inputs()] == 0).all()


def test_blocks_are_as_wide_as_there_are_rows_behind_them():
    x = normal(75, 300)
    outputs, params = (lambda p, x: x @ p["w"]), {"w": normal(300, 2)}
    few = curvature(outputs, params, [x, x])
    assert few["w"].layout.rows_shape == (2, 2, 150) and few["w"].rows == 150
    assert few.notes == {"w": "in 2 blocks of 150 inputs, from 150 rows of calibration data"}
    check(few["w"], x[:, :150], x[:, 150:])
    enough = curvature(outputs, params, [x] * 4)
    assert enough["w"].layout.rows_shape == (1, 2, 300) and not enough.notes
    # No more than that many positions are looked at, and no block is narrower than 128.
    assert curvature(outputs, params, [x] * 4, positions=10)["w"].layout.rows_shape == (3, 2, 100)

    # Both steps of a loop count, and parts of inputs are not cut again.
    def loop(p, x):
        return lax.scan(lambda state, part: (state, part @ p["w"]), 0, jnp.stack([x, x]))[1].sum(0)

    assert curvature(loop, params, [x])["w"].layout.rows_shape == (2, 2, 150)
    parts = curvature(lambda p, x: x[:, :150] @ p["w"][:150] + x[:, 150:] @ p["w"][150:], params, [x])
    assert parts["w"].layout.rows_shape == (2, 2, 150) and parts["w"].rows == 75


def test_the_outputs_factor_makes_the_exact_gauss_newton_diagonal():
    """Of one linear layer, where the matrix is a Kronecker product: ``outputs * diag(inputs)`` is its diagonal."""
    v, x = normal(3, 2), X[:, 0]
    jacobian = jax.jacrev(lambda w: (x @ w) @ v)(normal(4, 3))
    exact = np.square(jacobian).sum((0, 1)) / len(x)  # [4, 3]
    batches = [x[i : i + 1] for i in range(len(x))]
    leaf = output_curvature(lambda p, x: (x @ p["w"]) @ v, {"w": normal(4, 3)}, batches, key=jax.random.key(1), draws=500)["w"]
    np.testing.assert_allclose(leaf.outputs[0], np.square(v).sum(1), rtol=0.1)
    found = leaf.layout.to_leaf(leaf.outputs[:, :, None] * np.diagonal(leaf.inputs, axis1=1, axis2=2)[:, None])
    np.testing.assert_allclose(found, exact, rtol=0.1)


def test_one_output_and_one_example_a_batch_is_exact():
    """With one output the signs cancel, and the estimate is the diagonal itself."""
    x = X[:, 0]
    leaf = curvature(lambda p, x: x @ p["w"], {"w": normal(4, 1)}, [x[i : i + 1] for i in range(len(x))])["w"]
    np.testing.assert_allclose(leaf.outputs, [[1.0]], rtol=1e-5)


def test_padding_does_not_count():
    batch = {"inputs": X, "mask": np.array([1, 0, 1, 1, 0, 1], np.float32), "scale": np.float32(2)}
    leaf = curvature(lambda p, b: b["inputs"] @ p["w"] * b["scale"], {"w": normal(4, 3)}, [batch])["w"]
    check(leaf, X[batch["mask"] != 0])


def on_all_devices():
    """Moments of two batches of one shape and one of another, with few positions."""
    local = np.random.default_rng(7)
    batches = [local.normal(size=(n, 5, 4)).astype(np.float32) for n in (6, 6, 6, 6, 6, 3)]
    params = {"in": local.normal(size=(4, 3)).astype(np.float32), "again": local.normal(size=(3, 3)).astype(np.float32)}
    found = output_curvature(lambda p, x: recurrent(p, x)[0], params, batches, key=jax.random.key(3), draws=1, positions=11)
    return {"devices": jax.device_count(), **{name: [x.inputs.tolist(), x.outputs.tolist(), x.rows] for name, x in found.items()}}


def test_four_devices_give_the_moments_of_one(on_four_devices):
    found, expected = on_four_devices("curvature"), on_all_devices()
    assert found.pop("devices") == 4
    for name in ("in", "again"):
        for one, other in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
