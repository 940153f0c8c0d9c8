"""Residual quantization against its definition, stage by stage in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import decode
from bqjax.core.rules import Rule
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize

KEY = jax.random.key(0)
W = np.random.default_rng(0).standard_normal((24, 20)).astype(np.float32)  # 20 rows of 24: 120 blocks of 4


def fitted(**settings):
    leaf = residual_quantize({"w": W}, key=KEY, config=ResidualConfig(k=8, d=4, **settings))["w"]
    leaf.validate()
    return leaf


def left_over(leaf, w=W):
    return float(np.square(np.asarray(decode(leaf), np.float64) - w).sum())


def test_every_stage_and_every_refit_leaves_less():
    errors = [left_over(fitted(stages=t, refits=0)) for t in (1, 2, 3)]
    assert np.square(W).sum() > errors[0] > errors[1] > errors[2] > 0
    refitted = [left_over(fitted(stages=3, refits=r)) for r in (1, 4)]
    assert errors[2] > refitted[0] >= refitted[1]


def test_stages_are_those_of_the_definition():
    # Stages that are not refitted do not depend on how many follow.
    one, three = fitted(stages=1, refits=0), fitted(stages=3, refits=0)
    np.testing.assert_array_equal(one.stages[0].indices, three.stages[0].indices)
    blocks = W.T.reshape(-1, 4).astype(np.float64)
    for stage in three.stages:
        distance = np.square(blocks[:, None] - np.asarray(stage.codebook, np.float64)).sum(2)
        np.testing.assert_array_equal(distance.argmin(1), stage.indices)
        blocks = blocks - np.asarray(stage.codebook)[stage.indices]
    np.testing.assert_allclose(np.asarray(decode(three)), W - blocks.reshape(20, 24).T, atol=1e-6)


def test_stages_of_wide_layers_are_those_of_the_definition_as_well():
    """Blocks of layers of many outputs stay where they lie, and what is left over is one array that is written over."""
    w = np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32)
    kept = w.copy()
    plain = residual_quantize({"w": w}, key=KEY, config=ResidualConfig(k=8, d=2, stages=2, refits=0))["w"]
    rest = w.T.reshape(-1, 2)
    for stage in plain.stages:
        distance = np.square(rest[:, None].astype(np.float64) - np.asarray(stage.codebook, np.float64)).sum(2)
        chosen = distance[np.arange(512), np.asarray(stage.indices)]
        np.testing.assert_allclose(chosen, distance.min(1), atol=1e-5)
        rest = rest - np.asarray(stage.codebook)[stage.indices]
    refitted = residual_quantize({"w": jnp.asarray(w)}, key=KEY, config=ResidualConfig(k=8, d=2, stages=2, refits=2))["w"]
    assert left_over(refitted, w) < left_over(plain, w)
    np.testing.assert_array_equal(w, kept)


def test_the_last_stage_is_nearest_to_what_all_others_leave():
    leaf = fitted(stages=2, refits=4)
    first, last = leaf.stages
    rest = W.T.reshape(-1, 4) - np.asarray(first.codebook)[first.indices]
    distance = np.square(rest[:, None] - np.asarray(last.codebook)).sum(2)
    chosen = np.take_along_axis(distance, np.asarray(last.indices, int)[:, None], 1)[:, 0]
    np.testing.assert_allclose(chosen, distance.min(1), atol=1e-5)


def test_sums_of_two_codebooks_come_out():
    rng = np.random.default_rng(1)
    coarse, fine = 100 * rng.standard_normal((4, 2)), rng.standard_normal((3, 2))
    w = (coarse[:, None] + fine[None]).reshape(12, 2)
    w = np.tile(w, (4, 1)).reshape(8, 12).T.astype(np.float32)
    leaf = residual_quantize({"w": w}, key=KEY, config=ResidualConfig(stages=2, k=4, d=2, refits=2))["w"]
    np.testing.assert_allclose(decode(leaf), w, atol=1e-3)


def test_stages_that_nothing_is_left_for_are_left_out():
    leaf = residual_quantize({"w": np.zeros((24, 20), np.float32)}, key=KEY, config=ResidualConfig(stages=3, k=8, d=4))["w"]
    leaf.validate()
    assert len(leaf.stages) == 1 and leaf.stages[0].k == 1 and not decode(leaf).any()


def test_short_types_are_summed_before_they_are_rounded():
    w = W.astype(np.float16)
    leaf = residual_quantize({"w": w}, key=KEY, config=ResidualConfig(stages=3, k=8, d=4, refits=1))["w"]
    leaf.validate()
    assert leaf.stages[0].codebook.dtype == np.float16
    assert left_over(leaf) < 1.05 * left_over(fitted(stages=3, refits=1))


def test_refusals():
    for field, value in (("stages", 0), ("stages", 65), ("k", 0), ("d", True), ("iterations", 1.5), ("refits", -1)):
        with pytest.raises(ValueError, match=f"{field} must be an integer of at least"):
            ResidualConfig(**{field: value})
    with pytest.raises(ValueError, match="'w' has 120 blocks of 4, fewer than the 256 codebook entries"):
        residual_quantize({"w": W}, key=KEY)
    with pytest.raises(ValueError, match="rule 'w': the setting must be a ResidualConfig, got 4"):
        residual_quantize({"w": W}, [Rule("w", 4)], key=KEY)
    with pytest.raises(ValueError, match="'w' is in group 'g'"):
        residual_quantize({"w": W}, [Rule("w", group="g")], key=KEY)
