"""Whole trees: what is taken, what is stored, and what is refused."""

from __future__ import annotations

from dataclasses import replace as with_fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax import codec, decode
from bqjax.core.journal import digest
from bqjax.core.leaves import Affine, Clustered
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves, replace
from bqjax.methods.rate_distortion import (
    RateDistortion,
    SolverConfig,
    bin_and_quant_rd,
    lambda_for_bytes,
    predicted_distortion,
)
from bqjax.methods.rate_distortion.search import file_bytes, gaussian_lambda
from bqjax.methods.rate_distortion.solver import mean_removal_cost, prepare, removal_distortion
from bqjax.sensitivity.curvature import output_curvature


def outputs(params, batch):
    x = jnp.tanh(batch["inputs"] @ params["first"]["kernel"] + params["first"]["bias"][None, :])
    # The gate enters by its square: of it only the importance is known.
    return (x * jnp.square(params["gate"]).sum(0)[None, :]) @ params["last"] * batch["mask"][:, None]


def score(params, batch):
    error = jnp.square(outputs(params, batch) - batch["targets"]).sum(1)
    right = (outputs(params, batch).argmax(1) == batch["targets"].argmax(1)) * batch["mask"]
    return {"loss": error.sum(), "accuracy": right.sum()}, batch["mask"].sum()


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {
        "first": {"kernel": rng.normal(size=(12, 32)) / 3, "bias": rng.normal(size=32) / 5},
        "gate": rng.uniform(0.5, 1, (2, 32)),
        "last": rng.normal(size=(32, 5)) / 4,
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    batches = []
    for _ in range(3):
        batch = {"inputs": jnp.asarray(rng.normal(size=(64, 12)), jnp.float32), "mask": jnp.ones(64)}
        batches.append({**batch, "targets": outputs(params, batch)})
    curvature = output_curvature(outputs, params, batches, key=jax.random.key(0), draws=8)
    return params, batches, curvature


def measured(params, tree, batches):
    change = [outputs(decode(tree), b) - outputs(params, b) for b in batches]
    return float(np.mean([jnp.square(c).sum(1).mean() for c in change])) / 2


def test_leaves_are_few_levels_and_what_they_cost_is_near_what_was_predicted(problem):
    params, batches, curvature = problem
    tree = bin_and_quant_rd(params, curvature, lmbda=1e-4)
    leaves = named_leaves(tree)
    assert {type(leaves[n]) for n in ("first/kernel", "gate", "last")} == {Clustered} and isinstance(leaves["first/bias"], Affine)
    for name, leaf in leaves.items():
        leaf.validate(name)
    predicted = predicted_distortion(params, tree, curvature)
    assert set(predicted) == set(leaves)
    assert sum(predicted.values()) == pytest.approx(measured(params, tree, batches), rel=0.7)


def test_a_higher_lmbda_makes_a_smaller_file_and_a_larger_error(problem, tmp_path):
    params, batches, curvature = problem
    sizes, errors = [], []
    for lmbda in (0.0, 1e-6, 1e-4, 1e-2):
        tree = bin_and_quant_rd(params, curvature, lmbda=lmbda)
        info = codec.save(tmp_path / f"{lmbda}.bq.safetensors", tree)
        same = codec.load(info.path)
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(decode(same)), jax.tree.leaves(decode(tree)), strict=True))
        sizes.append(info.file_bytes)
        errors.append(measured(params, tree, batches))
    assert (np.diff(sizes) < 0).all() and (np.diff(errors) > 0).all() and errors[0] < 1e-6


def test_unbiased_levels_help_where_a_signal_is_common_to_rows_and_noise_is_not(tmp_path):
    rng = np.random.default_rng(1)
    common, own = rng.normal(size=(24, 1)), rng.normal(size=(24, 256))
    params = {"kernel": jnp.asarray(common + own / 2, jnp.float32)}

    def mean_of_rows(params, batch):
        return (batch["inputs"] @ params["kernel"]).mean(1, keepdims=True)

    batches = [{"inputs": jnp.asarray(rng.normal(size=(512, 24)), jnp.float32)}]
    curvature = output_curvature(mean_of_rows, params, batches, key=jax.random.key(0))
    sizes, errors = [], []
    for config in (SolverConfig(), SolverConfig(unbiased=True)):
        tree = bin_and_quant_rd(params, curvature, lmbda=5e-7, config=config)
        sizes.append(codec.save(tmp_path / f"{config.unbiased}.bq.safetensors", tree).file_bytes)
        change = mean_of_rows(decode(tree), batches[0]) - mean_of_rows(params, batches[0])
        errors.append(float(jnp.square(change).mean()))
    assert sizes[0] == sizes[1] and errors[1] < 0.5 * errors[0]


def test_rules_choose_and_vectors_can_stay(problem):
    params, _, curvature = problem
    tree = bin_and_quant_rd(params, curvature, lmbda=1e-3, rules=[Rule("last")])
    assert [n for n, x in named_leaves(tree).items() if isinstance(x, Clustered)] == ["last"]
    tree = bin_and_quant_rd(params, curvature, lmbda=1e-3, config=SolverConfig(vectors=False, shift=False))
    assert tree["first"]["bias"] is params["first"]["bias"]


def test_what_removal_costs_is_the_quadratic_form_of_all_weights(problem):
    params, _, curvature = problem
    prepared = prepare(params, curvature, config=SolverConfig(damping=1e-6, floor=1e-6, shift=False))
    costs, weights = removal_distortion(prepared)
    assert weights.sum() == 12 * 32 + 2 * 32 + 32 * 5
    zeros = {**params, "first": {**params["first"], "kernel": params["first"]["kernel"] * 0}}
    expected = predicted_distortion(params, zeros, curvature)["first/kernel"]
    first = costs[:32] * weights[:32]
    assert weights[0] == 12 and first.sum() == pytest.approx(expected, rel=0.15)  # beside damping by d / rows
    assert mean_removal_cost(prepared) == pytest.approx((costs * weights).sum() / weights.sum())


@pytest.mark.parametrize("lmbda", [-1.0, float("nan"), float("inf")])
def test_lmbda_must_be_a_finite_number(problem, lmbda):
    with pytest.raises(ValueError, match="lmbda must be finite and not negative"):
        bin_and_quant_rd(problem[0], problem[2], lmbda=lmbda)


def test_curvature_of_other_parameters_is_refused(problem):
    params, _, curvature = problem
    with pytest.raises(ValueError, match="other parameters"):
        bin_and_quant_rd({**params, "last": params["last"] + 1}, curvature, lmbda=1e-3)


def test_weights_that_are_not_finite_are_named(problem):
    params, _, curvature = problem
    broken = {**params, "last": params["last"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="'last' holds 1 NaN"):
        bin_and_quant_rd(broken, with_fields(curvature, fingerprint=digest(broken)), lmbda=1e-3)


def test_a_leaf_that_nothing_is_known_of_is_named(problem):
    params, batches, _ = problem
    some = output_curvature(outputs, params, batches, key=jax.random.key(0), draws=1, names=["last"])
    with pytest.raises(ValueError, match="'first/kernel' has neither curvature nor importance"):
        bin_and_quant_rd(params, some, lmbda=1e-3)


def test_a_bias_takes_up_the_mean_change_of_outputs(problem):
    params, batches, _ = problem
    # Inputs far from zero: a leaf's errors show in the mean of its outputs first.
    batches = [{**b, "inputs": b["inputs"] + 1.5} for b in batches]
    curvature = output_curvature(outputs, params, batches, key=jax.random.key(0), draws=8)
    assert list(curvature.shifts) == ["first/kernel"] and curvature.shifts["first/kernel"].bias == "first/bias"
    found = {}
    for shift in (True, False):
        tree = bin_and_quant_rd(params, curvature, lmbda=1e-3, config=SolverConfig(shift=shift, vectors=False))
        found[shift] = measured(params, tree, batches) + 1e-3 * 8 * file_bytes(tree)  # what is minimised
    before, after = (
        named_leaves(params),
        named_leaves(bin_and_quant_rd(params, curvature, lmbda=1e-3, config=SolverConfig(vectors=False))),
    )
    change = np.asarray(decode(after["first/kernel"])) - np.asarray(before["first/kernel"])
    mean = np.concatenate([b["inputs"] for b in batches]).mean(0)
    np.testing.assert_allclose(after["first/bias"] - before["first/bias"], -(mean @ change), rtol=1e-3, atol=1e-4)
    assert found[True] < found[False]
    # What the bias makes good is counted once: the prediction is that of the leaf's covariance.
    tree = replace(params, {name: after[name] for name in ("first/kernel", "first/bias")})
    predicted = predicted_distortion(params, tree, curvature)
    assert predicted["first/bias"] < 1e-6 * predicted["first/kernel"]
    # Rules that leave the bias alone leave it where it was.
    ruled = bin_and_quant_rd(params, curvature, lmbda=1e-3, rules=[Rule("first/kernel"), Rule("last")])
    assert ruled["first"]["bias"] is params["first"]["bias"]


BAD_SETTINGS = [{"damping": 0.0}, {"floor": np.nan}, {"step_scales": ()}, {"step_scales": (-1.0,)}, {"passes": 0}, {"sweeps": -1}]


@pytest.mark.parametrize("settings", BAD_SETTINGS)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SolverConfig(**settings)


def task(params, batches):
    return Task(name="toy", params=params, score=score, calibration=batches, test=batches, outputs=outputs)


def test_the_method_keeps_the_drop_or_the_size(problem, tmp_path):
    params, batches, _ = problem
    toy = task(params, batches)
    method, state = RateDistortion(max_drop=0.02, steps=5, scan=2, draws=2, by_leaf=True), str(tmp_path / "state")
    found = method.compress(toy, key=jax.random.key(1), state_path=state)
    assert found.info.baseline["accuracy"] - found.info.final["accuracy"] <= 0.02 + 1e-6
    assert float(found.found["lmbda"]) == pytest.approx(found.info.lmbda, rel=1e-3)
    # What the outputs lost is measured on the whole, and for each leaf with the bias that takes up its mean.
    assert found.info.measured == pytest.approx(measured(params, found.tree, batches), rel=1e-4)
    leaves = named_leaves(found.tree)
    alone = replace(params, {name: leaves[name] for name in ("first/kernel", "first/bias")})
    assert set(found.info.measured_leaves) == {"first/kernel", "gate", "last"}
    assert found.info.measured_leaves["first/kernel"] == pytest.approx(measured(params, alone, batches), rel=1e-4)
    again = method.compress(toy, key=jax.random.key(1), state_path=state)
    assert again.info == found.info
    for target in (900, 700):
        sized = RateDistortion(target_bytes=target, draws=2).compress(toy, key=jax.random.key(1))
        info = codec.save(tmp_path / f"{target}.bq.safetensors", sized.tree)
        assert 0.9 * target < info.file_bytes <= target


def test_the_method_refuses_what_it_cannot_do(problem):
    params, batches, _ = problem
    with pytest.raises(ValueError, match="name one of"):
        RateDistortion()
    with pytest.raises(ValueError, match="name one of"):
        RateDistortion(lmbda=1.0, target_bytes=100)
    blind = Task(name="blind", params=params, score=score, calibration=batches, test=batches)
    with pytest.raises(ValueError, match="'blind' has no outputs"):
        RateDistortion(lmbda=1.0).compress(blind, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no lmbda reaches 50 bytes: the nearest"):
        RateDistortion(target_bytes=50, draws=1).compress(task(params, batches), key=jax.random.key(0))


@pytest.mark.parametrize("target", [15_000, 25_000, 60_000, 90_000])
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_a_size_takes_few_files(target, spread):
    """Files of Gaussian layers of several curvatures, each at its rate by reverse water-filling, beside 3,000 bytes of tables."""
    rng = np.random.default_rng(0)
    curvatures = np.exp(spread * rng.normal(size=20))
    curvatures /= curvatures.mean()
    sizes = {}

    def size(lmbda):
        bits = np.maximum(0.5 * np.log2(2 * np.log(2) * curvatures / lmbda), 0.02)
        sizes[lmbda] = int(3000 + 200_000 / 8 * bits.mean())
        return sizes[lmbda]

    found = lambda_for_bytes(size, target, 1.0, 200_000)
    assert 0.995 * target <= sizes[found] <= target and len(sizes) <= 5
    # Told the curvatures, the first file is a hit but for its tables.
    sizes.clear()
    start = gaussian_lambda(curvatures, np.full(20, 10_000.0), target - 3000)
    assert size(start) == pytest.approx(target, rel=0.05)
    found = lambda_for_bytes(size, target, 1.0, 200_000, start=start)
    assert 0.995 * target <= sizes[found] <= target and len(sizes) <= 3


def test_sizes_that_are_out_of_reach():
    made = []
    assert lambda_for_bytes(lambda lmbda: made.append(lmbda) or 10, 4000, 1.0, 100) < 1e-4
    assert len(made) < 8
    with pytest.raises(ValueError, match="no lmbda reaches 4,000 bytes: the nearest, 4, makes a file of 5,000 bytes"):
        lambda_for_bytes(lambda lmbda: 5000, 4000, 1.0, 100)
    # A size that jumps past the target: the largest below it is taken.
    assert lambda_for_bytes(lambda lmbda: 5000 if lmbda < 0.01 else 3000, 4000, 1.0, 10_000) == pytest.approx(0.01, rel=0.2)
