"""Stacked parameters under ``scan`` against layers one by one, classifiers against NumPy, and packing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformer_reference as reference
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.tree import named_leaves
from bqjax.models.transformer.classifiers import KWT, ViT
from bqjax.models.transformer.language import Decoder
from bqjax.models.transformer.layers import MLP
from bqjax.models.transformer.packing import packed
from bqjax.models.transformer.settings import Rotary, TransformerConfig
from bqjax.sensitivity.curvature import output_curvature

CONFIG = TransformerConfig(
    width=8, layers=3, heads=4, kv_heads=2, hidden=12, norm="rms", eps=1e-6, activation="silu", gated=True, pre_norm=True,
    causal=True, rotary=Rotary(), attention_bias=False, output_bias=False, mlp_bias=False,
)  # fmt: skip
TOKENS = np.array([[1, 5, 2, 6], [4, 0, 3, 3]], np.int32)


def stacked(params):
    """Parameters of layers one by one, in the layout of ``scan``."""
    blocks = params["layers"]["blocks"]
    return {**params, "layers": {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks.values())}}


def test_a_scan_over_stacked_layers_is_the_same_network():
    one, scanned = (Decoder(CONFIG, 7, tied=False, scan=scan, rngs=nnx.Rngs(0)) for scan in (False, True))
    params = nnx_params(one)
    assert named_leaves(nnx_params(scanned))["layers/blocks/mlp/down/kernel"].shape == (3, 12, 8)
    run, run_scanned = nnx_apply(one), nnx_apply(scanned)
    np.testing.assert_allclose(jax.jit(run_scanned)(stacked(params), TOKENS), jax.jit(run)(params, TOKENS), rtol=1e-5, atol=1e-6)
    plain = output_curvature(run, params, [TOKENS], key=jax.random.key(0))
    found = output_curvature(run_scanned, stacked(params), [TOKENS], key=jax.random.key(0))
    for name in ("attention/output/kernel", "mlp/up/kernel"):
        own = found[f"layers/blocks/{name}"]
        np.testing.assert_allclose(
            own.inputs, np.concatenate([plain[f"layers/blocks/{i}/{name}"].inputs for i in range(3)]), rtol=1e-4, atol=1e-5
        )


def values(params):
    return {name: np.asarray(x, np.float64) for name, x in named_leaves(params).items()}


def redrawn(model):
    """Parameters that differ from where norms and biases begin."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, 0.3, x.shape).astype(np.float32), nnx_params(model))


def test_kwt_against_numpy():
    config = TransformerConfig(width=8, layers=2, heads=1, hidden=12, eps=1e-6, activation="gelu_new", attention_bias=False)
    model = KWT(config, frames=5, features=4, classes=3, rngs=nnx.Rngs(0))
    params, x = redrawn(model), np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    p = values(params)
    rows = x.astype(np.float64) @ p["input/kernel"] + p["input/bias"]
    expected = [reference.classifier(p, row, 1e-6, False, reference.gelu_tanh, 1) for row in rows]
    np.testing.assert_allclose(jax.jit(nnx_apply(model))(params, x), expected, rtol=1e-4, atol=1e-4)


def test_vit_against_numpy():
    config = TransformerConfig(width=8, layers=2, heads=2, hidden=12, eps=1e-6, pre_norm=True)
    model = ViT(config, size=4, patch=2, channels=3, classes=5, rngs=nnx.Rngs(0))
    params, x = redrawn(model), np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)
    p = values(params)
    patches = x.astype(np.float64).reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, -1)
    rows = patches @ p["patches/kernel"].reshape(-1, 8) + p["patches/bias"]
    expected = [reference.classifier(p, row, 1e-6, True, reference.gelu, 2) for row in rows]
    np.testing.assert_allclose(jax.jit(nnx_apply(model))(params, x), expected, rtol=1e-4, atol=1e-4)


@given(st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=2, max_size=2), min_size=1, max_size=12))
def test_packing_keeps_every_text_once(groups):
    found = packed(groups, 8)
    seen = []
    for row in range(len(found.tokens)):
        for k, i in enumerate(found.members[row]):
            texts = [found.tokens[row][found.mask[row] == 2 * k + j + 1].tolist() for j in range(2)]
            assert found.counted[row, 2 * k : 2 * k + 2].tolist() == [i >= 0] * 2
            if i >= 0:
                assert texts == groups[i]
                seen.append(i)
    assert sorted(seen) == list(range(len(groups)))
    assert (found.mask > 0).sum() == sum(len(text) for group in groups for text in group)


@pytest.mark.parametrize(
    ("groups", "message"),
    [([], "no texts"), ([[[1]], [[1], [2]]], "group 1 has 2"), ([[[]]], "empty text"), ([[[1] * 9]], "9 tokens, more than the 8")],
)
def test_packing_names_what_it_cannot_take(groups, message):
    with pytest.raises(ValueError, match=message):
        packed(groups, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"kv_heads": 3}, "cannot share 3"),
        ({"width": 9}, "no 4 equal heads"),
        ({"norm": "batch"}, "norm must be"),
        ({"head_width": 3}, "must be even"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**CONFIG.__dict__, **change})


def test_networks_that_cannot_be():
    with pytest.raises(ValueError, match="set causal=True"):
        Decoder(TransformerConfig(width=8, layers=1, heads=2, hidden=8), 5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="activation 'cube' is not known"):
        MLP(TransformerConfig(width=8, layers=1, heads=2, hidden=8, activation="cube"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no whole patches of 3"):
        ViT(TransformerConfig(width=8, layers=1, heads=2, hidden=8, pre_norm=True), size=8, patch=3, classes=2, rngs=nnx.Rngs(0))
