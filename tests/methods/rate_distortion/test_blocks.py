"""Blocks under the curvature: against brute force, least squares of NumPy, the scalar rule and plain k-means."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax import codec, decode
from bqjax.core.blocks import from_blocks, to_blocks
from bqjax.core.leaves import Affine, Clustered
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.kmeans.vector import kmeans_vector
from bqjax.methods.rate_distortion import BlockConfig, BlockRateDistortion, block_quant_rd, prepare_blocks
from bqjax.methods.rate_distortion.block_codebook import BlockLeaf, refitted_codebook
from bqjax.methods.rate_distortion.block_feedback import (
    block_errors,
    block_stats,
    compensated_blocks,
    descended_blocks,
    to_columns,
)
from bqjax.methods.rate_distortion.block_refresh import block_refreshes, refreshed_indices
from bqjax.methods.rate_distortion.blocks import block_layout
from bqjax.methods.rate_distortion.distortion import predicted_distortion
from bqjax.methods.rate_distortion.feedback import compensated_values, inverse_factor
from bqjax.methods.rate_distortion.search import file_bytes
from bqjax.sensitivity.curvature import output_curvature
from bqjax.sensitivity.leaf_curvature import Layout, LeafCurvature

CONV = Layout(shape=(3, 3, 4, 5), view=(3, 3, 4, 5), groups=(), rows=(3,), inputs=(0, 1, 2))
DENSE = Layout(shape=(7, 4), view=(7, 4), groups=(), rows=(1,), inputs=(0,))
DEPTHWISE = Layout(shape=(3, 3, 1, 6), view=(3, 3, 1, 6), groups=(3,), rows=(2,), inputs=(0, 1))


def curvature_of(layout, seed=0, rows=200):
    rng = np.random.default_rng(seed)
    groups, n_rows, d = layout.rows_shape
    x = np.stack([rng.normal(size=(rows, d)) @ rng.normal(size=(d, d)) for _ in range(groups)])
    outputs = rng.uniform(0.5, 2, (groups, n_rows)).astype(np.float32)
    second = np.einsum("gni,gnj->gij", x, x).astype(np.float32) / rows
    return LeafCurvature(second, x.mean(1).astype(np.float32), outputs, rows, False, layout)


def in_blocks(layout, d, seed=0):
    """Weights, their columns and the statistics of a leaf in blocks."""
    weights = np.random.default_rng(seed + 1).normal(size=layout.shape).astype(np.float32)
    stats = block_stats(curvature_of(layout, seed), block_layout("w", layout, d))
    return weights, to_columns(jnp.asarray(layout.to_rows(weights)), stats), stats


@pytest.mark.parametrize(("layout", "d"), [(CONV, 9), (CONV, 4), (CONV, 5), (DENSE, 3), (DEPTHWISE, 4), (CONV, 1)])
def test_blocks_of_rows_are_those_of_the_file(layout, d):
    found = block_layout("w", layout, d)
    weights = np.arange(1.0, np.prod(layout.shape) + 1, dtype=np.float32).reshape(layout.shape)
    theirs = np.asarray(to_blocks(weights, found.axis_order, d))
    padded = np.pad(layout.to_rows(weights), ((0, 0), (0, 0), (0, 1)))
    for g in range(len(found.inputs)):
        for r in range(padded.shape[1]):
            np.testing.assert_array_equal(padded[g, r][found.inputs[g]], theirs[found.numbers[g, r]])
    order = np.stack([np.random.default_rng(g).permutation(found.inputs.shape[1]) for g in range(len(found.inputs))])
    indices = np.random.default_rng(0).integers(0, 9, len(theirs))
    np.testing.assert_array_equal(found.to_indices(found.from_indices(indices, order), order), indices)


def test_the_first_block_is_the_best_when_all_later_ones_may_move_freely():
    """The oracle solves for the later weights by NumPy, for each entry of the codebook."""
    layout = Layout(shape=(6, 3), view=(6, 3), groups=(), rows=(1,), inputs=(0,))
    weights, columns, stats = in_blocks(layout, 2)
    codebook = np.random.default_rng(5).normal(size=(7, 2)).astype(np.float32)
    chosen = compensated_blocks(columns, stats, jnp.asarray(codebook), jnp.linspace(1, 4, 7), 0.3)
    h = np.asarray(stats.moment[0], np.float64)
    for row in range(3):
        g, costs = float(stats.importance[0, row]), []
        for j in range(7):
            e = np.asarray(columns[0, row, :2], np.float64) - codebook[j]
            later = -np.linalg.solve(h[2:, 2:], h[2:, :2] @ e)
            whole = np.concatenate([e, later])
            costs.append(g / 2 * whole @ h @ whole + 0.3 * np.linspace(1, 4, 7)[j])
        assert int(chosen[0, row, 0]) == int(np.argmin(costs))
    assert weights.shape == layout.shape


def test_of_all_choices_descent_finds_one_that_no_single_block_can_improve_and_brute_force_is_near():
    layout = Layout(shape=(6, 1), view=(6, 1), groups=(), rows=(1,), inputs=(0,))
    reached = []
    for seed in range(6):
        _, columns, stats = in_blocks(layout, 2, seed)
        codebook = jnp.asarray(np.random.default_rng(seed).normal(size=(4, 2)), jnp.float32)
        bits = jnp.asarray([1.0, 2.0, 3.0, 3.0])

        def cost(index, columns=columns, stats=stats, codebook=codebook, bits=bits):
            index = jnp.asarray(index).reshape(1, 1, 3)
            return float(block_errors(columns, index, codebook, stats) + 0.5 * bits[index].sum())

        every = {index: cost(index) for index in itertools.product(range(4), repeat=3)}
        first = compensated_blocks(columns, stats, codebook, bits, 0.5)
        last = descended_blocks(columns, first, stats, codebook, bits, 0.5, sweeps=5)
        assert cost(last) <= cost(first) * (1 + 1e-5)
        found = tuple(np.asarray(last).reshape(-1).tolist())
        for block, entry in itertools.product(range(3), range(4)):
            other = (*found[:block], entry, *found[block + 1 :])
            assert every[other] >= every[found] * (1 - 1e-5)
        reached.append(every[found] / min(every.values()))
    assert min(reached) < 1 + 1e-5 and np.median(reached) < 1.2


def test_blocks_of_one_weight_are_the_scalar_rule():
    weights, columns, stats = in_blocks(CONV, 1)
    rows = jnp.asarray(CONV.to_rows(weights))[0]
    known = curvature_of(CONV)
    share = 0.01 + 36 / 200
    order, factor = inverse_factor(jnp.asarray(known.inputs[0]), share)
    levels, bits = jnp.linspace(-2, 2, 5), jnp.asarray([4.0, 2.0, 1.0, 2.0, 4.0])
    theirs, _ = compensated_values(rows, order, factor, stats.importance[0], levels, bits, 0.7)
    ours = compensated_blocks(columns, stats, levels[:, None], bits, 0.7)
    indices = block_layout("w", CONV, 1).to_indices(ours, stats.order)
    np.testing.assert_array_equal(indices, CONV.to_leaf(np.asarray(theirs)[None]).transpose(3, 2, 0, 1).reshape(-1))


def test_a_refit_is_least_squares():
    """The oracle has the whole matrix, by NumPy."""
    _, columns, stats = in_blocks(CONV, 4)
    rng = np.random.default_rng(3)
    chosen = jnp.asarray(rng.integers(0, 3, (1, 5, 9)))  # of 4 entries one is unused
    start = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    found = refitted_codebook((BlockLeaf(columns, stats),), (chosen,), start, steps=60)
    a, b = np.zeros((16, 16)), np.zeros(16)
    h = np.asarray(stats.moment[0], np.float64)
    for row in range(5):
        s = np.zeros((36, 16))
        for j, entry in enumerate(np.asarray(chosen[0, row])):
            s[np.arange(4) + 4 * j, np.arange(4) + 4 * entry] = 1
        g = float(stats.importance[0, row])
        a, b = a + g * s.T @ h @ s, b + g * s.T @ h @ np.asarray(columns[0, row], np.float64)
    expected = np.linalg.solve(a[:12, :12], b[:12]).reshape(3, 4)
    np.testing.assert_allclose(found[:3], expected, atol=2e-3)
    np.testing.assert_array_equal(found[3], start[3])


def outputs(params, batch):
    x = jax.lax.conv_general_dilated(batch, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jax.nn.relu(x + params["bias"][None, None, None, :])
    x = jax.lax.conv_general_dilated(x, params["next"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(x).mean((1, 2)) @ params["head"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 6, 12), "bias": (12,), "next": (3, 3, 12, 12), "head": (12, 4)}
    params = {name: jnp.asarray(rng.normal(size=shape) / 3, jnp.float32) for name, shape in shapes.items()}
    batches = [jnp.asarray(rng.normal(size=(32, 6, 6, 6)) @ rng.normal(size=(6, 6)), jnp.float32) for _ in range(2)]
    return params, batches, output_curvature(outputs, params, batches, key=jax.random.key(0), draws=4)


RULES = [Rule("conv", BlockConfig(d=9, k=16), group="kernels"), Rule("next", BlockConfig(d=9, k=16), group="kernels")]


def test_a_tree_of_blocks_is_a_file_and_better_than_plain_k_means(problem, tmp_path):
    params, batches, curvature = problem
    tree = block_quant_rd(params, curvature, lmbda=1e-4, blocks=RULES, key=jax.random.key(1))
    assert isinstance(tree["conv"], Clustered) and tree["conv"].d == 9 and tree["head"].d == 1
    assert isinstance(tree["bias"], Affine) and tree["conv"].codebook is not None
    np.testing.assert_array_equal(tree["conv"].codebook, tree["next"].codebook)
    for name, leaf in named_leaves(tree).items():
        leaf.validate(name)
    info = codec.save(tmp_path / "net.bq.safetensors", tree)
    for a, b in zip(jax.tree.leaves(decode(codec.load(info.path))), jax.tree.leaves(decode(tree)), strict=True):
        np.testing.assert_array_equal(a, b)

    order = (3, 2, 0, 1)
    x = jnp.concatenate([to_blocks(params[name], order, 9) for name in ("conv", "next")])
    plain = kmeans_vector(x, 16, key=jax.random.key(1))
    values = plain.codebook[plain.indices]
    theirs = {"conv": from_blocks(values[:72], (3, 3, 6, 12), order), "next": from_blocks(values[72:], (3, 3, 12, 12), order)}

    def change(tree):
        return sum(float(jnp.square(outputs(decode(tree), b) - outputs(params, b)).sum()) for b in batches)

    assert change(tree) < change(params | theirs)


def test_a_higher_lmbda_takes_fewer_bits(problem):
    params, _, curvature = problem
    counts = []
    for lmbda in (0.0, 1e-3, 1.0):
        tree = block_quant_rd(params, curvature, lmbda=lmbda, blocks=RULES, key=jax.random.key(1))
        counts.append(tree["conv"].k)
    assert counts[0] == 16 and counts[1] >= counts[2] and counts[2] < 16


def test_rounding_a_codebook_with_unused_entries_costs_little(problem):
    """Entries without use are dropped when the codebook is rounded; the bits of the others must stay theirs."""
    params, _, curvature = problem
    lmbda, costs, left = 3e-3, [], []
    for bits in (None, 8):
        setting = BlockConfig(d=9, k=32, codebook_bits=bits)
        blocks = [Rule(name, setting, group="kernels") for name in ("conv", "next")]
        tree = block_quant_rd(params, curvature, lmbda=lmbda, blocks=blocks, key=jax.random.key(1))
        lost = predicted_distortion(params, tree, curvature)
        counts = np.unique(np.concatenate([tree[name].indices for name in ("conv", "next")]), return_counts=True)[1]
        costs.append(lost["conv"] + lost["next"] - lmbda * (counts * np.log2(counts / counts.sum())).sum())
        left.append(tree["conv"].k)
    assert left[0] < 32
    assert costs[1] < 1.01 * costs[0]


def test_indices_that_are_refreshed_cost_less_under_the_curvature(problem):
    """The oracle is the quadratic form of the curvature as a whole, by NumPy."""
    params, _, curvature = problem
    prepared = prepare_blocks(params, curvature, RULES)
    refreshes = block_refreshes(prepared, curvature)
    rng = np.random.default_rng(0)
    codebook = (rng.normal(size=(16, 9)) / 3).astype(np.float32)
    leaves, weights = {}, {}
    for name in ("conv", "next"):
        shape = params[name].shape
        indices = rng.integers(0, 16, shape[2] * shape[3]).astype(np.uint8)
        leaves[name] = Clustered(indices, codebook, shape, np.float32, (3, 2, 0, 1), group="kernels")
        weights[name] = params[name] + rng.normal(size=shape).astype(np.float32) / 20
    lengths = jnp.linspace(2.0, 6.0, 16)
    new = refreshed_indices(weights, leaves, refreshes, dict.fromkeys(leaves, lengths), 0.05, sweeps=2)

    def cost(name, leaf):
        known = curvature[name]
        e = known.layout.to_rows(np.asarray(weights[name], np.float64) - np.asarray(leaf.decode(), np.float64))
        stats = refreshes[name].stats
        e = np.take_along_axis(np.pad(e, ((0, 0), (0, 0), (0, 1))), np.asarray(stats.inputs)[:, None, :], axis=2)
        quadratic = (np.matmul(e, np.asarray(stats.moment, np.float64)) * e).sum(-1)
        return (np.asarray(stats.importance, np.float64) * quadratic).sum() / 2 + 0.05 * float(lengths[leaf.indices].sum())

    for name, leaf in new.items():
        leaf.validate(name)
        assert cost(name, leaf) < 0.8 * cost(name, leaves[name])


def test_the_method_meets_a_size(problem):
    params, batches, _ = problem

    def score(params, batch):
        return {"loss": jnp.square(outputs(params, batch)).sum(), "accuracy": jnp.zeros(())}, jnp.float32(len(batch))

    task = Task(score=score, params=params, calibration=batches, test=batches[:1], name="small", outputs=outputs)
    method = BlockRateDistortion(target_bytes=1100, blocks=RULES)
    found = method.compress(task, key=jax.random.key(0))
    about = {"task": "small", "method": method.label, **found.found}
    assert 900 <= file_bytes(found.tree, "auto", about) <= 1100
    assert set(found.info.predicted) >= {"conv", "next", "head"} and found.info.lmbda > 0
    for fields, message in (({}, "name one of"), ({"lmbda": 1.0}, "blocks are rules"), ({"lmbda": -1.0, "blocks": RULES}, "lmbda")):
        with pytest.raises(ValueError, match=message):
            BlockRateDistortion(**fields)


@pytest.mark.parametrize(
    ("rules", "lmbda", "message"),
    [
        ([Rule("conv", BlockConfig(d=55))], 1e-3, "rows of 54 weights"),
        ([Rule("conv", 9)], 1e-3, "must be BlockConfig"),
        ([Rule("conv", BlockConfig(k=256))], 1e-3, "72 blocks, fewer than the 256 entries"),
        ([Rule("conv", BlockConfig(k=4), group="a"), Rule("next", BlockConfig(k=8), group="a")], 1e-3, "share one codebook"),
        (RULES, -1.0, "not negative"),
        ([Rule("nothing", BlockConfig())], 1e-3, "nothing"),
    ],
)
def test_what_cannot_be_cut_to_blocks_is_named(problem, rules, lmbda, message):
    params, _, curvature = problem
    with pytest.raises(ValueError, match=re.escape(message)):
        block_quant_rd(params, curvature, lmbda=lmbda, blocks=rules, key=jax.random.key(0))


def test_blocks_must_lie_in_the_inputs_of_one_output():
    wide = Layout(shape=(12, 4), view=(12, 4), groups=(), rows=(1,), inputs=(0,), width=6)
    with pytest.raises(ValueError, match="parts of wide inputs"):
        block_layout("wide", wide, 4)
    assert block_layout("wide", wide, 3).inputs.shape == (2, 2, 3)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="k must be from 1"):
        BlockConfig(k=0)
    with pytest.raises(ValueError, match="codebook_bits"):
        BlockConfig(codebook_bits=9)
