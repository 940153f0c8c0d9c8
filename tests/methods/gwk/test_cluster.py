"""GWK against NumPy in float64, and what it promises on trees, in files and inside a training loop."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax import codec, decode
from bqjax.core.blocks import block_mask, from_blocks, output_first, to_blocks
from bqjax.core.leaves import Clustered
from bqjax.core.rules import Rule
from bqjax.core.tree import named_leaves
from bqjax.experiment.storage import same_tree
from bqjax.kmeans.codebooks import codebook_gradients, codebooks, with_codebooks
from bqjax.methods.gwk.assignment import assign, index_bits
from bqjax.methods.gwk.cluster import GWKConfig, bits_per_weight, gwk_cluster
from bqjax.methods.gwk.config import block_size, block_weights
from bqjax.methods.gwk.training import gwk_init, gwk_update, straight_through

KEY = jax.random.key(0)


class Pair(NamedTuple):
    kernel: Any
    bias: Any


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tree(seed=0):
    """One convolution that blocks of 6 divide, one that they do not, a pointwise one, a dense layer.

    A clustering is compiled for every number and size of blocks: all tests keep to those of this tree.
    """
    return {
        "conv": {"kernel": normal(3, 3, 4, 8, seed=seed), "bias": normal(8, seed=seed)},
        "layers": [Pair(normal(3, 3, 3, 8, seed=seed + 1), normal(8)), (normal(1, 1, 24, 8, seed=seed + 2),)],
        "head": {"kernel": normal(24, 8, seed=seed + 3)},
        "steps": np.arange(3, dtype=np.int32),
    }


CONFIG = GWKConfig(bits=3)
CLUSTERED = {"conv/kernel": 6, "head/kernel": 4, "layers/0/kernel": 6, "layers/1/0": 4}


PARAMS = tree()


@functools.cache
def clustered():
    return gwk_cluster(PARAMS, tree(seed=10), key=KEY, config=CONFIG)


def blocks_of(w, d):
    """Blocks as III-D draws them, written out: ``[kh, kw, cin, cout] -> [cout, cin kh kw] -> [n, d]``, and what is real."""
    rows = np.moveaxis(w, (-1, -2), (0, 1)).reshape(w.shape[-1], -1)
    padded = np.zeros((rows.shape[0], -(-rows.shape[1] // d) * d))
    real = np.zeros_like(padded, bool)
    padded[:, : rows.shape[1]], real[:, : rows.shape[1]] = rows, True
    return padded.reshape(-1, d), real.reshape(-1, d)


def test_the_tree_the_block_sizes_and_the_bits():
    compressed, info = clustered()
    assert {n: leaf.d for n, leaf in named_leaves(compressed).items() if isinstance(leaf, Clustered)} == CLUSTERED
    assert set(info) == set(CLUSTERED)
    for name, leaf in named_leaves(compressed).items():
        if name in CLUSTERED:
            leaf.validate(name)
            assert (leaf.k, leaf.codebook.dtype, leaf.dtype) == (8, np.float32, np.float32)
            bits = (leaf.indices.size * 3 + 8 * leaf.d * 8) / leaf.size
            assert info[name].bits_per_weight == bits
            assert 1 <= int(info[name].used) <= 8
        else:
            assert leaf is named_leaves(PARAMS)[name]


@pytest.mark.parametrize("weighting", ["block", "coordinate", "none"])
def test_entries_are_the_gradient_weighted_means_of_their_blocks(weighting):
    """Equation 1, at the fixed point, with the layout and the weights worked out again in NumPy."""
    params, grads = tree(), tree(seed=10)
    names = ["layers/0/kernel"] if weighting == "coordinate" else ["layers/0/kernel", "conv/kernel"]
    config = GWKConfig(bits=3, weighting=weighting)
    compressed, info = gwk_cluster(params, grads, [Rule(name) for name in names], key=KEY, config=config)
    for name in names:
        assert int(info[name].iterations) < 25
        leaf = named_leaves(compressed)[name]
        x, real = blocks_of(named_leaves(params)[name], leaf.d)
        size = np.abs(blocks_of(named_leaves(grads)[name], leaf.d)[0])
        if weighting == "block":
            size = (size.sum(1) / real.sum(1))[:, None] * real
        elif weighting == "none":
            size = real.astype(float)
        index = np.asarray(leaf.indices)
        metric = size if weighting == "coordinate" else real
        distance = (np.square(x[:, None] - np.asarray(leaf.codebook, float)[None]) * metric[:, None]).sum(2)
        assert (distance[np.arange(len(x)), index] - distance.min(1)).max() < 1e-5
        for j in range(8):
            mine = index == j
            mass = size[mine].sum(0)
            found = mass > 0
            expected = (size[mine] * x[mine]).sum(0)[found] / mass[found]
            np.testing.assert_allclose(np.asarray(leaf.codebook)[j][found], expected, atol=1e-4)
        error = (np.square(x - np.asarray(leaf.codebook, float)[index]) * size).sum() / size.sum()
        np.testing.assert_allclose(float(info[name].error), error, rtol=1e-4)
        np.testing.assert_allclose(leaf.decode(), from_blocks(leaf.codebook[leaf.indices], leaf.shape, leaf.axis_order))


def test_blocks_with_large_gradients_are_kept():
    params, grads = {"w": normal(24, 8)}, {"w": np.full((24, 8), 1e-3, np.float32)}
    grads["w"][:4] = 1
    with_g = decode(gwk_cluster(params, grads, key=KEY, config=CONFIG)[0])["w"]
    without = decode(gwk_cluster(params, None, key=KEY, config=CONFIG)[0])["w"]
    error = lambda w: np.square(np.asarray(w) - params["w"])[:4].mean()  # noqa: E731
    assert error(with_g) < 0.2 * error(without)


def test_gradients_of_zero_and_none_count_all_weights_equally():
    params = {"w": tree()["conv"]["kernel"]}
    zero = gwk_cluster(params, jax.tree.map(np.zeros_like, params), key=KEY, config=CONFIG)[0]["w"]
    none = gwk_cluster(params, None, key=KEY, config=CONFIG)[0]["w"]
    plain = gwk_cluster(params, tree(seed=10), key=KEY, config=GWKConfig(bits=3, weighting="none"))[0]["w"]
    np.testing.assert_array_equal(zero.indices, none.indices)
    np.testing.assert_array_equal(zero.codebook, none.codebook)
    np.testing.assert_array_equal(plain.codebook, none.codebook)


# Every operation is compiled for every shape: one case each of whole blocks, padded ones, blocks longer than a row and of 1.
@pytest.mark.parametrize(
    ("shape", "d", "seed"),
    [((3, 3, 2, 3), 6, 0), ((3, 3, 2, 3), 4, 1), ((5, 4), 6, 2), ((1, 7, 3, 2), 1, 3), ((3, 3, 1, 4), 5, 4), ((7, 1), 2, 5)],
)
def test_layout_and_weights(shape, d, seed):
    w, g = normal(*shape, seed=seed), normal(*shape, seed=seed + 100)
    expected, real = blocks_of(w, d)
    order = output_first(len(shape))
    if d > 1:  # with d = 1 order does not matter
        np.testing.assert_array_equal(to_blocks(w, order, d), expected.astype(np.float32))
        np.testing.assert_array_equal(block_mask(shape, order, d), real)
        size = np.abs(blocks_of(g, d)[0])
        mean = size.sum(1) / real.sum(1)
        np.testing.assert_allclose(block_weights(g, d)[:, 0], mean / mean.mean(), rtol=1e-5)
        np.testing.assert_allclose(block_weights(g, d, "coordinate"), size / size.sum() * real.sum(), rtol=1e-5)
    np.testing.assert_array_equal(from_blocks(to_blocks(w, order, d), shape, order), w)
    np.testing.assert_allclose(block_weights(1e-30 * g, d), block_weights(g, d), rtol=1e-5)


def test_block_sizes():
    config = GWKConfig(cv=9, pw=2)
    for shape, d in [((3, 3, 8, 8), 9), ((5, 1, 8, 8), 9), ((1, 1, 8, 8), 2), ((8, 8), 2), ((3, 3, 1, 8), 9), ((7, 4, 4), 9)]:
        assert block_size(shape, config) == d


def test_rules_settings_and_groups():
    params, grads = tree(), tree(seed=10)
    rules = [
        Rule("conv/*", skip=True),
        Rule("head/kernel", 2),
        Rule("layers/1/0", GWKConfig(bits=2, pw=4)),
        Rule("layers/0/kernel"),
    ]
    compressed, _ = gwk_cluster(params, grads, rules, key=KEY, config=CONFIG)
    assert compressed["conv"]["kernel"] is params["conv"]["kernel"]
    assert compressed["head"]["kernel"].codebook.shape == (4, 4)
    assert compressed["layers"][1][0].codebook.shape == (4, 4)
    assert compressed["layers"][0].kernel.codebook.shape == (8, 6)

    params = {"a": normal(12, 8), "b": normal(24, 4, seed=1)}
    shared, info = gwk_cluster(params, params, [Rule("*", group="g")], key=KEY, config=CONFIG)
    np.testing.assert_array_equal(shared["a"].codebook, shared["b"].codebook)
    assert info["a"] == info["b"]
    assert bits_per_weight(shared) == (48 * 3 + 32 * 8) / 192


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_types(dtype):
    params = {"w": jnp.asarray(normal(24, 8)).astype(dtype)}
    leaf = gwk_cluster(params, None, key=KEY, config=CONFIG)[0]["w"]
    assert leaf.codebook.dtype == leaf.decode().dtype == dtype
    again = assign(params, {"w": leaf})["w"]
    np.testing.assert_array_equal(again.indices, leaf.indices)


def test_jit_gives_what_eager_gives():
    params, grads = tree(), tree(seed=10)
    run = functools.partial(gwk_cluster, rules=[Rule("layers/0/kernel")], config=CONFIG)
    eager, info = run(params, grads, key=KEY)
    traced, traced_info = jax.jit(run)(params, grads, key=KEY)
    name = "layers/0/kernel"
    a, b = named_leaves(eager)[name], named_leaves(traced)[name]
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_allclose(a.codebook, b.codebook, rtol=1e-6)
    np.testing.assert_allclose(info[name].error, traced_info[name].error, rtol=1e-5)


def test_a_start_is_followed():
    params, grads = tree(), tree(seed=10)
    first, _ = clustered()
    moved = jax.tree.map(lambda x: x + 1e-4 if x.dtype == np.float32 else x, params)
    again, info = gwk_cluster(moved, grads, [Rule("conv/kernel")], key=jax.random.key(5), config=CONFIG, start=first)
    assert int(info["conv/kernel"].iterations) < 25
    np.testing.assert_allclose(again["conv"]["kernel"].codebook, first["conv"]["kernel"].codebook, atol=1e-3)
    with pytest.raises(ValueError, match=r"start has a codebook of \(8, 6\) for leaf 'conv/kernel', which needs one of \(16, 6\)"):
        gwk_cluster(moved, grads, [Rule("conv/kernel", 4)], key=KEY, start=first)
    with pytest.raises(ValueError, match="start has no codebook for leaf 'conv/kernel'"):
        gwk_cluster(moved, grads, [Rule("conv/kernel", 3)], key=KEY, start=params)


def test_a_file_holds_padded_blocks_bit_for_bit(tmp_path):
    compressed, _ = clustered()
    for coder in (*codec.CODERS, "auto"):
        path = tmp_path / f"{coder}.bq.safetensors"
        codec.save(path, compressed, coder=coder)
        loaded = codec.load(path, like=compressed)
        assert same_tree(loaded, compressed)
        assert same_tree(decode(loaded), decode(compressed))


def poisoned(value):
    grads = tree(seed=10)
    grads["head"]["kernel"][2, 3] = value
    return grads


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(value):
    with pytest.raises(ValueError, match="the gradient of leaf 'head/kernel' holds 1 NaN or infinite values of 192"):
        gwk_cluster(tree(), poisoned(value), key=KEY, config=CONFIG)
    with pytest.raises(ValueError, match="leaf 'head/kernel' holds 1 NaN or infinite values of 192"):
        gwk_cluster(poisoned(value), tree(), key=KEY, config=CONFIG)


def test_unfit_arguments():
    params, grads = tree(), tree(seed=10)
    for rules, message in [
        (
            [Rule("head/kernel", 6)],
            r"leaf 'head/kernel' has 48 blocks of 4, fewer than the 64 codebook entries of 6 bits",
        ),
        (
            [Rule("head/kernel", GWKConfig(pw=25))],
            r"leaf 'head/kernel' of shape \(24, 8\) has rows of 24 weights, fewer",
        ),
        ([Rule("conv/bias", GWKConfig(bits=1))], r"leaf 'conv/bias' of shape \(8,\) has rows of 1 weights"),
        ([Rule("haed/kernel")], "rule 'haed/kernel' matches no leaf; did you mean 'head/kernel'"),
        ([Rule("steps")], "int32 is not floating point"),
        ([Rule("head/kernel", 2.5)], r"the setting must be a GWKConfig or a number of bits, got 2.5"),
        ([Rule("conv/kernel", group="g"), Rule("head/kernel", group="g")], "must agree in block size"),
        ([Rule("conv/kernel", 2, group="g"), Rule("layers/0/kernel", 3, group="g")], "must agree in setting"),
    ]:
        with pytest.raises(ValueError, match=message):
            gwk_cluster(params, grads, rules, key=KEY, config=CONFIG)
    with pytest.raises(ValueError, match="there is no gradient for leaf 'head/kernel'"):
        gwk_cluster(params, {"conv": grads["conv"]}, [Rule("head/kernel", 1)], key=KEY)
    with pytest.raises(ValueError, match=r"the gradient of leaf 'w' has shape \(3,\), the leaf \(24, 8\)"):
        gwk_cluster({"w": normal(24, 8)}, {"w": normal(3)}, key=KEY, config=CONFIG)
    for setting, message in [({"bits": 17}, "bits must be"), ({"cv": 0}, "cv must be"), ({"weighting": "x"}, "weighting must be")]:
        with pytest.raises(ValueError, match=message):
            GWKConfig(**setting)
    with pytest.raises(ValueError, match="no leaf of the tree is clustered"):
        bits_per_weight(params)
    with pytest.raises(ValueError, match="clustered leaf 'head/kernel' stands for weights of shape"):
        assign({**params, "head": {"kernel": normal(3, 3)}}, clustered()[0])


# --- inside the loop -------------------------------------------------------------------------------------------------


def test_straight_through_has_the_values_of_the_file_and_the_gradients_of_the_weights():
    params, (compressed, _) = tree(), clustered()
    floats = {name: x for name, x in named_leaves(params).items() if x.dtype == np.float32}
    flat = {name: named_leaves(compressed)[name] for name in floats}
    loss = lambda p: sum((x**3).sum() for x in p.values())  # noqa: E731
    seen = straight_through(floats, flat)
    grads = jax.grad(lambda p: loss(straight_through(p, flat)))(floats)
    for name in floats:
        value = flat[name].decode() if name in CLUSTERED else floats[name]
        np.testing.assert_array_equal(seen[name], value)
        np.testing.assert_allclose(grads[name], 3 * np.square(value), rtol=1e-6)


def test_gradients_of_codebooks_are_those_of_automatic_differentiation():
    params = {"a": normal(12, 8), "b": normal(24, 4, seed=1), "c": normal(3, 3, 3, 8)}
    rules = [Rule("c"), Rule("*", group="g")]
    compressed, _ = gwk_cluster(params, None, rules, key=KEY, config=CONFIG)
    loss = lambda p: sum(jnp.sin(x).sum() + (x**3).sum() for x in p.values())  # noqa: E731
    expected = jax.grad(lambda c: loss(decode(with_codebooks(compressed, c))))(codebooks(compressed))
    got = codebook_gradients(compressed, jax.grad(loss)(decode(compressed)))
    assert set(got) == {"group g", "c"}
    for key in got:
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"codebook 'c' must have shape \(8, 6\), got nothing"):
        with_codebooks(compressed, {"group g": codebooks(compressed)["group g"]})


def float_tree(seed=0):
    return {"conv": normal(3, 3, 3, 8, seed=seed), "a": normal(12, 8, seed=seed + 1), "b": normal(24, 4, seed=seed + 2)}


def running(params, grads):
    compressed, _ = gwk_cluster(params, grads, [Rule("conv"), Rule("*", group="g")], key=KEY, config=CONFIG)
    return gwk_init(params, grads, compressed)


def test_running_means_against_numpy():
    params, grads = float_tree(), float_tree(seed=10)
    state = running(params, grads)
    moment, mass = np.asarray(state.moments["conv"], float), np.asarray(state.masses["conv"], float)
    step = jax.jit(functools.partial(gwk_update, decay=0.9))
    for i in range(3):
        params = jax.tree.map(lambda x, i=i: x + 0.05 * normal(*x.shape, seed=50 + i), params)
        grads = float_tree(seed=20 + i)
        codebook = np.asarray(state.tree["conv"].codebook, float)
        state = step(state, params, grads)
        x, real = blocks_of(params["conv"], 6)
        size = np.abs(blocks_of(grads["conv"], 6)[0])
        g = (size.sum(1) / real.sum(1))[:, None]
        g = g / g.mean() * real
        index = (np.square(x[:, None] - codebook[None]) * real[:, None]).sum(2).argmin(1)
        np.testing.assert_array_equal(state.tree["conv"].indices, index)
        assert set(index) == set(range(8))
        moment = 0.9 * moment + 0.1 * np.stack([(g * x)[index == j].sum(0) for j in range(8)])
        mass = 0.9 * mass + 0.1 * np.stack([g[index == j].sum(0) for j in range(8)])
        found = mass > 1e-9
        np.testing.assert_allclose(
            np.asarray(state.tree["conv"].codebook)[found], (moment / np.where(found, mass, 1))[found], atol=1e-4
        )
    np.testing.assert_array_equal(state.tree["a"].codebook, state.tree["b"].codebook)


def test_frozen_assignments_stay_and_codebooks_follow():
    params, grads = float_tree(), float_tree(seed=10)
    state = running(params, grads)
    before = np.asarray(state.tree["conv"].codebook)
    far = jax.tree.map(lambda x: -x, params)
    for frozen in (True, jnp.array(True)):
        new = gwk_update(state, far, grads, frozen=frozen, decay=0.0)
        np.testing.assert_array_equal(new.tree["conv"].indices, state.tree["conv"].indices)
        used = np.unique(np.asarray(new.tree["conv"].indices))
        # The start ends with an assignment, whose means may differ a little from its codebook.
        np.testing.assert_allclose(np.asarray(new.tree["conv"].codebook)[used], -before[used], atol=0.3)
    moved = gwk_update(state, far, grads, frozen=jnp.array(False))
    assert (np.asarray(moved.tree["conv"].indices) != np.asarray(state.tree["conv"].indices)).any()


def test_entries_that_no_block_points_to_are_revived():
    params, grads = float_tree(), float_tree(seed=10)
    state = running(params, grads)
    books = codebooks(state.tree)
    books["conv"] = books["conv"].at[3:].set(1e3)
    state = state._replace(tree=with_codebooks(state.tree, books))
    for _ in range(4):
        state = gwk_update(state, params, grads, decay=0.0)
    assert len(np.unique(np.asarray(state.tree["conv"].indices))) == 8


def test_a_training_step_under_jit_learns():
    """Latent weights, straight-through, running codebooks, then codebooks alone: the loss of what would be in the file falls."""
    x, y = normal(256, 24), normal(256, 8, seed=1)
    y = y * 0.1 + x @ normal(24, 8, seed=2)
    params = {"w": normal(24, 8, seed=2) + 0.3 * normal(24, 8, seed=3)}
    loss = lambda p: jnp.square(x @ p["w"] - y).mean()  # noqa: E731
    grads = jax.grad(loss)(params)
    compressed, _ = gwk_cluster(params, grads, key=KEY, config=CONFIG)
    state = gwk_init(params, grads, compressed)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: loss(straight_through(p, state.tree)))(params)
        params = jax.tree.map(lambda w, g: w - 0.05 * g, params, grads)
        return params, gwk_update(state, params, grads)

    first = float(loss(decode(state.tree)))
    for _ in range(60):
        params, state = step(params, state)
    second = float(loss(decode(state.tree)))
    books = codebooks(state.tree)
    tune = jax.jit(lambda b: codebook_gradients(state.tree, jax.grad(loss)(decode(with_codebooks(state.tree, b)))))
    for _ in range(60):
        books = jax.tree.map(lambda c, g: c - 0.02 * g, books, tune(books))
    third = float(loss(decode(with_codebooks(state.tree, books))))
    assert third < second < first


@pytest.mark.parametrize("rate", [1.5, 2.0])
def test_a_rate_makes_used_entries_nearer(rate):
    """Against NumPy in float64; and it takes the indices to fewer bits."""
    params = {"w": normal(24, 8), "c": normal(3, 3, 3, 8, seed=2)}
    compressed, _ = gwk_cluster(params, None, key=KEY, config=CONFIG)
    got = assign(params, compressed, rate=rate)
    for name, leaf in compressed.items():
        x, real = blocks_of(params[name], leaf.d)
        c, old = np.asarray(leaf.codebook, np.float64), np.asarray(leaf.indices)
        distance = (np.square(x[:, None] - c) * real[:, None]).sum(-1)
        error = (np.square(x - c[old]) * real).sum(1).mean()
        p = np.maximum(np.bincount(old, minlength=leaf.k), 0.5) / len(x)
        cost = distance + rate * 2 * np.log(2) / leaf.d * error * -np.log2(p)
        chosen = np.asarray(got[name].indices)
        assert (cost[np.arange(len(x)), chosen] <= cost.min(1) + 1e-4).all()
        entropy = [
            np.sum(-q * np.log2(q, where=q > 0, out=np.zeros_like(q)))
            for q in (np.bincount(i, minlength=leaf.k) / len(x) for i in (old, chosen))
        ]
        assert entropy[1] < entropy[0]
    with pytest.raises(ValueError, match="rate must be finite"):
        assign(params, compressed, rate=-1.0)


def test_bits_that_are_set_are_kept():
    """Two leaves of one codebook, each at its own bits; lmbda is higher for the one whose indices are to be shorter."""
    params = {"a": normal(96, 64), "b": normal(96, 64, seed=5)}
    rules = [Rule("*", GWKConfig(bits=4), group="both")]
    tree, _ = gwk_cluster(params, None, rules, key=KEY)
    bits = {"a": 3.6, "b": 2.8}
    state = gwk_init(params, params, tree, weighting="none", bits=bits)
    update = jax.jit(functools.partial(gwk_update, weighting="none", bits=bits))
    for _ in range(150):
        state = update(state, params, params)
    found = index_bits(state.tree)
    assert {name: round(float(found[name]), 1) for name in bits} == pytest.approx(bits, abs=0.15)
    assert float(state.lmbdas["b"]) > 1.5 * float(state.lmbdas["a"])
    joint = np.concatenate([np.asarray(state.tree[n].indices) for n in "ab"])
    p = np.bincount(joint, minlength=state.tree["a"].k) / joint.size
    expected = {n: -np.log2(p[np.asarray(state.tree[n].indices)]).mean() for n in "ab"}
    assert {n: float(found[n]) for n in "ab"} == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"'a' have 4 bits, so that 4\.5"):
        gwk_init(params, params, tree, bits={"a": 4.5})
    with pytest.raises(ValueError, match="'c', which is not clustered"):
        gwk_init(params, params, tree, bits={"c": 1.0})
    with pytest.raises(ValueError, match="bits are set for 'a', of which the state has no lmbda: give gwk_init the same"):
        gwk_update(gwk_init(params, params, tree), params, params, bits={"a": 3.0})
