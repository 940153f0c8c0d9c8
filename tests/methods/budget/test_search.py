"""Plans on a network that is made without training: curves, budgets, resuming, and what no plan reaches."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import forward, tiny_task

from bqjax import codec, decode
from bqjax.core.classification import classification_outputs
from bqjax.core.journal import Journal
from bqjax.core.tree import named_leaves, replace
from bqjax.experiment import reference, run_row
from bqjax.experiment.kept_rows import search_name
from bqjax.methods.budget.curves import LayerCurves, units
from bqjax.methods.budget.method import WithinBudget
from bqjax.methods.budget.plan import BudgetConfig
from bqjax.methods.budget.search import find_plan
from bqjax.sensitivity.evaluator import Evaluator

KEY = jax.random.key(0)
CONFIG = BudgetConfig(bins=(8,), blocks=((2, 3),), exponents=(-6.0, -2.0), vectors=(8,), draws=2, iterations=5, refine=1)
FOLDER = tempfile.TemporaryDirectory()  # removed when the process ends
STATE = Path(FOLDER.name) / "state.jsonl"


@functools.cache
def task():
    return tiny_task(outputs=classification_outputs(forward))


@functools.cache
def curves(coder="ans"):
    return LayerCurves(task(), CONFIG, key=KEY, journal=Journal(), coder=coder)


@functools.cache
def planned(**budget):
    """Plans that several tests look at, with the measurements of one state file."""
    return find_plan(task(), CONFIG, key=KEY, label="p", coder="ans", state_path=STATE, **budget)


def accuracy(params, batches):
    sums = [task().score(params, batch) for batch in batches]
    return float(sum(s["accuracy"] for s, _ in sums) / sum(n for _, n in sums))


def test_units_are_kernels_and_vectors_by_kind():
    params = {
        "a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "b": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)},
        "steps": jnp.arange(3),
        "large": jnp.ones(5000),
    }
    assert units(params) == {
        "a/kernel": ("a/kernel",),
        "b/kernel": ("b/kernel",),
        "a/bias": ("a/bias", "b/bias"),
        "b/scale": ("b/scale",),
    }


def test_every_option_against_the_network_itself():
    names = [name for members in curves().units.values() for name in members]
    assert sorted(names) == ["head/kernel", "hidden/bias", "hidden/kernel"]
    outputs = jax.jit(task().outputs)
    before = [np.asarray(outputs(task().params, b)) for b in task().calibration]
    for unit, options in curves().options.items():
        assert options[0].setting is None and options[0].distortions == {"outputs": 0.0, "loss": 0.0}
        assert len(options) >= 2
        for option in options[1:]:
            made = curves().leaves(unit, option.setting)
            params = replace(task().params, {name: leaf.decode() for name, leaf in made.items()})
            squares = sum(
                float(np.square(np.asarray(outputs(params, b)) - z).sum()) for b, z in zip(task().calibration, before, strict=True)
            )
            assert option.distortions["outputs"] == pytest.approx(squares / 60, rel=1e-4)
            # Bytes are those that the leaf takes in a file.
            assert option.bytes < options[0].bytes


@pytest.mark.parametrize("coder", ["ans", "raw", "auto"])
def test_bytes_of_a_plan_are_those_of_the_file(coder, tmp_path):
    plan = dict.fromkeys(curves().units, 1)
    info = codec.save(tmp_path / "f", curves().tree(plan), coder=coder)
    assert sum(leaf.bytes for leaf in info.leaves) == sum(o[1].bytes for o in curves(coder).options.values())
    assert len(curves().layers(plan)) == 3 and len(curves().layers(dict.fromkeys(curves().units, 0))) == 0


@pytest.mark.parametrize("target", [700, 1000])
def test_a_size_is_kept_and_used(target, tmp_path):
    plan = planned(target_bytes=target)
    # By the file of the plan's own method, decoded: nothing of the search is trusted.
    row = run_row(
        task(), plan.method, tmp_path / "f", reference(task()), key=KEY, coder="ans",
        metadata={"task": task().name, "method": "p"},
    ).row  # fmt: skip
    assert row.file_bytes == plan.file_bytes == (tmp_path / "f").stat().st_size <= target
    params = decode(codec.load(tmp_path / "f"))
    drop = accuracy(task().params, task().calibration) - accuracy(params, task().calibration)
    assert plan.drop == pytest.approx(drop, abs=1e-6)
    assert plan.method.label == "p" and sum(u.size for u in plan.units) == 200


def test_a_budget_as_a_method(tmp_path):
    method = WithinBudget(target_bytes=1000, budget=CONFIG, label="p")
    made = method.compress(task(), key=KEY, state_path=str(STATE))
    assert 700 < codec.save(tmp_path / "file", made.tree).file_bytes <= 1000
    # Budgets of other sizes and options go on from the same measurements, importance of other draws does not.
    other = WithinBudget(max_drop=0.1, label="q")
    assert search_name(method) == search_name(WithinBudget(target_bytes=9, budget=CONFIG, label="q"))
    assert search_name(method) != search_name(other)
    for wrong in ({}, {"target_bytes": 1000, "max_drop": 0.01}):
        with pytest.raises(ValueError, match="either max_drop or target_bytes"):
            WithinBudget(**wrong)


def test_a_larger_file_does_less_distortion():
    small, large = planned(target_bytes=700), planned(target_bytes=1000)
    assert small.file_bytes < large.file_bytes and small.rank_drop > large.rank_drop


def test_a_drop_is_kept():
    plan, none = planned(max_drop=0.05), planned(max_drop=0.0)
    params = decode(plan.method.compress(task(), key=KEY).tree)
    drop = accuracy(task().params, task().calibration) - accuracy(params, task().calibration)
    assert drop <= 0.05 + 1e-6 and plan.drop == pytest.approx(drop, abs=1e-6)
    assert none.drop <= 1e-9 and plan.file_bytes <= none.file_bytes


def test_a_drop_is_kept_with_confidence():
    """At the bound by NumPy, of the file's own right answers."""
    sure, plain = planned(max_drop=0.06, confidence=0.9), planned(max_drop=0.06)
    params = decode(sure.method.compress(task(), key=KEY).tree)

    def right(params):
        found = [task().predict(params, b) for b in task().calibration]
        return np.concatenate([np.asarray(f.right)[np.asarray(f.counted)] for f in found]).astype(float)

    change = right(task().params) - right(params)
    error = change.std() / math.sqrt(60)
    assert sure.drop == pytest.approx(change.mean(), abs=1e-6) and sure.drop_error == pytest.approx(error, abs=1e-9)
    assert change.mean() + 1.2815516 * error <= 0.06 + 1e-6  # Phi(1.2815516) = 0.9
    assert sure.file_bytes >= plain.file_bytes


def test_an_interrupted_plan_and_one_that_is_not(tmp_path, monkeypatch):
    calls, scores, stop_after = [], Evaluator.scores, 4

    def stopping(self, *args, **kwargs):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(args)
        return scores(self, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "scores", stopping)
    state = tmp_path / "state.jsonl"
    budget = {"key": KEY, "target_bytes": 1000, "label": "p", "coder": "ans", "state_path": state}
    with pytest.raises(KeyboardInterrupt):
        find_plan(task(), CONFIG, **budget)
    with state.open("ab") as file:
        file.write(b'{"k":"half a li')  # what a kill leaves
    stop_after = None
    resumed, whole = find_plan(task(), CONFIG, **budget), planned(target_bytes=1000)
    assert resumed.n_measured == len(calls) - 4  # nothing twice
    assert (resumed.method, resumed.units, resumed.file_bytes) == (whole.method, whole.units, whole.file_bytes)
    # The same once more measures nothing.
    calls.clear()
    again = find_plan(task(), CONFIG, **budget)
    assert (again.n_measured, again.n_verified, again.method, calls) == (0, 0, whole.method, [])
    with pytest.raises(ValueError, match="belongs to another run"):
        find_plan(task(), CONFIG, **{**budget, "key": jax.random.key(1)})


def test_without_outputs_the_loss_is_the_distortion():
    config = BudgetConfig(bins=(8,), blocks=(), exponents=(-2.0,), vectors=(8,), iterations=5, refine=0)
    plan = find_plan(tiny_task(), config, key=KEY, target_bytes=900, coder="ans")
    assert plan.kind == "loss" and plan.file_bytes <= 900
    assert all(math.isfinite(u.option.distortions["loss"]) for u in plan.units)


def test_what_no_plan_reaches():
    with pytest.raises(ValueError, match=r"no plan fits into 50 bytes: the smallest file that these options reach has ") as found:
        planned(target_bytes=50)
    smallest = int(str(found.value).split()[-1].replace(",", ""))
    plan = planned(target_bytes=smallest)
    assert plan.file_bytes <= smallest  # values of lmbda between those that were offered may reach a little further


def test_a_drop_that_no_plan_keeps(monkeypatch):
    """Where nothing is left alone; with that option the drop is 0 at least."""
    made = LayerCurves.add

    def without_first(self, unit, setting):
        made(self, unit, setting)
        self.options[unit] = [o for o in self.options[unit] if o.setting is not None]

    monkeypatch.setattr(LayerCurves, "add", without_first)
    config = BudgetConfig(bins=(1,), blocks=(), exponents=(0.0,), vectors=(1,), draws=1, refine=0)
    with pytest.raises(
        ValueError, match=r"no plan keeps the drop of accuracy within 0.01: the least that was reached .* is 0\.\d+"
    ):
        find_plan(task(), config, key=KEY, max_drop=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name either a target size or the largest drop"),
        ({"target_bytes": 10, "max_drop": 0.1}, "name either a target size or the largest drop"),
        ({"target_bytes": 0}, "at least 1 byte, got 0"),
        ({"max_drop": -0.01}, "must be finite and not negative, got -0.01"),
        ({"max_drop": float("nan")}, "must be finite and not negative, got nan"),
        ({"max_drop": 0.1, "confidence": 1.0}, "the confidence must be at least 0.5 and below 1, got 1"),
        ({"max_drop": 0.1, "confidence": float("nan")}, "the confidence must be at least 0.5 and below 1, got nan"),
        ({"target_bytes": 900, "confidence": 0.9}, "a confidence is one of keeping a drop"),
    ],
)
def test_bad_budgets(changes, message):
    with pytest.raises(ValueError, match=message):
        find_plan(task(), CONFIG, key=KEY, **changes)


def test_no_confidence_without_predictions():
    with pytest.raises(ValueError, match="no predictions that tell each example's accuracy"):
        find_plan(tiny_task(predict=None), CONFIG, key=KEY, max_drop=0.1, confidence=0.9)


def test_networks_that_cannot_be_planned_for():
    def fails(params, match):
        with pytest.raises(ValueError, match=match):
            LayerCurves(tiny_task(params=params), CONFIG, key=KEY, journal=Journal())

    fails({"n": np.arange(3)}, "has no leaf to plan for")
    broken = jax.tree.map(np.array, task().params)
    broken["head"]["kernel"][0, 0] = np.nan
    fails(broken, "leaf 'head/kernel' holds 1 NaN")


def test_settings_of_curves_are_written_short():
    for options in curves().options.values():
        for option in options[1:]:
            assert float(f"{option.setting.lmbda:.5g}") == option.setting.lmbda
    assert set(named_leaves(task().params)) == {n for names in curves().units.values() for n in names}
