"""Recipes: bits from rows of noise, within the drop that is allowed, and as text that other tools read."""

from __future__ import annotations

import json
import math
import re

import pytest
from tiny import tiny_task

from bqjax.core.rules import Rule
from bqjax.experiment.recipes import make_recipe, read_sweep
from bqjax.methods.baselines.ptq import quantize

LARGEST = 0.7


def row(leaf, magnitude, drop, error=0.0, **fields):
    return {"leaf": leaf, "kind": "gaussian", "magnitude": magnitude, "drop": drop, "error": error, "standard_error": None} | fields


def content(costs, error=0.0):
    """Layers whose drop is a cost times the noise's variance."""
    levels = (0.01, 0.05, 0.2)
    rows = [row(leaf, m, c * m * m, error) for leaf, c in costs.items() for m in levels]
    leaves = {leaf: {"size": 100, "channels_largest": LARGEST} for leaf in costs}
    return {"metric": "accuracy", "leaves": leaves, "rows": rows}


def cost(c, bits):
    return c * (LARGEST / (2 ** (bits - 1) - 1)) ** 2 / 12


COSTS = {"head/0/kernel": 20.0, "body/1/kernel": 0.5, "body/2/kernel": 1.0, "first/kernel": 8000.0}


def test_bits_are_the_fewest_that_fit():
    recipe = make_recipe(content(COSTS), max_drop=0.01)
    assert {layer.leaf: layer.bits for layer in recipe.layers} == {
        "head/0/kernel": 8,
        "body/1/kernel": 4,
        "body/2/kernel": 4,
        "first/kernel": 32,
    }
    # Between the levels straight in the variance, which is what these rows are.
    for layer in recipe.layers:
        for bits in (4, 8):
            assert layer.drops[bits] == pytest.approx(cost(COSTS[layer.leaf], bits))
    assert recipe.drop == pytest.approx(cost(20, 8) + cost(0.5, 4) + cost(1, 4)) and recipe.drop <= 0.01
    assert {x.bits for x in make_recipe(content(COSTS), max_drop=1e-9).layers} == {32}
    assert {x.bits for x in make_recipe(content(COSTS), max_drop=1e9).layers} == {4}


def test_what_is_not_known_well_is_kept_away_from():
    sure, unsure = (make_recipe(content(COSTS, error), max_drop=0.01) for error in (0.0, 0.02))
    assert unsure.drop + 2 * unsure.error <= 0.01 and unsure.error > 0
    assert sum(x.bits for x in unsure.layers) > sum(x.bits for x in sure.layers)


def test_less_noise_is_not_worse():
    rows = [row("a/kernel", 0.01, 0.004), row("a/kernel", 0.1, -0.001), row("a/kernel", 0.2, 0.003)]
    found = make_recipe({"metric": "accuracy", "rows": rows, "leaves": {"a/kernel": {"size": 9, "channels_largest": 2.0}}})
    (layer,) = found.layers
    assert layer.drops[4] == pytest.approx(0.004) and layer.drops[8] <= layer.drops[4]


def test_rules_are_those_of_post_training_quantization():
    params = tiny_task().params
    recipe = make_recipe(content({"hidden/kernel": 0.1, "head/kernel": 1e6}))
    assert recipe.rules() == [Rule("hidden/kernel", 4), Rule("head/kernel", skip=True)]
    made = quantize(params, recipe.rules())
    assert made["hidden"]["kernel"].bits == 4 and made["head"]["kernel"] is params["head"]["kernel"]


def test_text_for_other_libraries():
    recipe = make_recipe(content(COSTS))

    class Qwix:
        def QuantizationRule(self, **fields):  # the library's own name
            return fields

    space = {"qwix": Qwix()}
    exec(recipe.qwix(), space)
    for path, bits in (("head/0", 8), ("body/1", 4), ("body/2", 4), ("first", None), ("body/12", None)):
        found = next((r["weight_qtype"] for r in space["rules"] if re.fullmatch(r["module_path"], path)), None)
        assert found == (None if bits is None else f"int{bits}")
    assert json.loads(recipe.bits_json()) == {"head.0": 8, "body.1": 4, "body.2": 4, "first": None}


def test_only_gaussian_noise_on_whole_layers_counts():
    extra = [
        row("head/0/kernel", 0.1, 9.0, kind="relative"),
        row("head/0/kernel", 0.1, 9.0, lower=0.0),
        row("head/0/kernel", 0.1, 9.0, by="random"),
        row("head/0/kernel", 0.1, None),
    ]
    sweep = content(COSTS)
    assert make_recipe({**sweep, "rows": sweep["rows"] + extra}) == make_recipe(sweep)


def test_what_no_recipe_can_be_made_of(tmp_path):
    sweep = content(COSTS)
    for change, options, message in (
        ({"rows": []}, {}, "no rows of Gaussian noise on whole layers"),
        ({"leaves": None}, {}, "of an earlier release"),
        ({}, {"max_drop": 0}, "max_drop must be positive"),
        ({}, {"max_drop": math.nan}, "max_drop must be positive"),
        ({}, {"widths": (1,)}, "from 2 to 16 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            make_recipe(sweep | change, **options)
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(sweep))
    assert read_sweep(path) == sweep
    for text in ("[]", "{", '{"rows": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"is no sweep\.json"):
            read_sweep(path)
    with pytest.raises(ValueError, match=r"is no sweep\.json"):
        read_sweep(tmp_path / "none.json")
