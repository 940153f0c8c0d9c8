"""Methods without data behind the common interface: they give what their functions give."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bqjax import decode
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.methods.baselines.deep_compression import DeepCompressionConfig, deep_compress
from bqjax.methods.baselines.diba import DiBAConfig, diba_factorize
from bqjax.methods.baselines.even import EvenConfig, even_levels
from bqjax.methods.baselines.methods import (
    PTQ,
    Binary,
    DeepCompression,
    DiBA,
    EvenLevels,
    ProductQuantization,
    ResidualQuantization,
)
from bqjax.methods.baselines.product import ProductConfig, binarize, product_quantize
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize

KEY = jax.random.key(0)
PARAMS = {name: {"kernel": np.random.default_rng(i).normal(size=(24, 16)).astype(np.float32)} for i, name in enumerate("ab")}
TASK = Task(name="none", params=PARAMS, score=lambda params, batch: ({}, 1), calibration=[0], test=[0])
RULES = (Rule("a/*", skip=True), Rule("*"))

METHODS = [
    (PTQ(config=PTQConfig(bits=4), rules=RULES), lambda p: quantize(p, RULES, config=PTQConfig(bits=4))),
    (
        ProductQuantization(config=ProductConfig(k=8, d=4), rules=RULES),
        lambda p: product_quantize(p, RULES, key=KEY, config=ProductConfig(k=8, d=4)),
    ),
    (
        ResidualQuantization(config=ResidualConfig(stages=2, k=8, d=4, refits=0), rules=RULES),
        lambda p: residual_quantize(p, RULES, key=KEY, config=ResidualConfig(stages=2, k=8, d=4, refits=0)),
    ),
    (
        DiBA(config=DiBAConfig(middle=3, rounds=1), rules=RULES),
        lambda p: diba_factorize(p, RULES, key=KEY, config=DiBAConfig(middle=3, rounds=1)),
    ),
    (EvenLevels(config=EvenConfig(rtol=0.1), rules=RULES), lambda p: even_levels(p, RULES, config=EvenConfig(rtol=0.1))),
    (Binary(rules=RULES), lambda p: binarize(p, RULES, axis=-1)),
    (
        DeepCompression(config=DeepCompressionConfig(sparsity=0.5, k=4), rules=RULES),
        lambda p: deep_compress(p, RULES, config=DeepCompressionConfig(sparsity=0.5, k=4)),
    ),
]


@pytest.mark.parametrize(("method", "expected"), METHODS, ids=lambda m: getattr(m, "label", ""))
def test_a_method_is_its_function(method, expected):
    tree = method.compress(TASK, key=KEY).tree
    np.testing.assert_array_equal(tree["a"]["kernel"], PARAMS["a"]["kernel"])
    got = np.asarray(decode(tree)["b"]["kernel"])
    np.testing.assert_array_equal(got, decode(expected(PARAMS))["b"]["kernel"])
    assert 0 < np.abs(got - PARAMS["b"]["kernel"]).max() < 4
