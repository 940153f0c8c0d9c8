"""Networks of Hugging Face's checkpoints against NumPy, and what they say of folders that do not fit."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
import transformer_reference as reference

from bqjax.adapters.safetensors import read_weights
from bqjax.core.scoring import score_batches
from bqjax.models.transformer.packing import packed
from bqjax.models.transformer.pretrained import KNOWN, pretrained
from bqjax.sensitivity.curvature import output_curvature

BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 11,
    "max_position_embeddings": 8,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 11,
    "n_positions": 8,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 11,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}


def stretch3(frequency):
    """Llama 3's wavelengths, by its paper's code."""
    wavelength = 2 * math.pi / frequency
    if wavelength < 32 / 4.0:
        return frequency
    if wavelength > 32 / 1.0:
        return frequency / 4.0
    smooth = (32 / wavelength - 1.0) / (4.0 - 1.0)
    return (1 - smooth) * frequency / 4.0 + smooth * frequency


CASES = {
    "bert": (BERT, reference.bert),
    "roberta": (BERT | {"model_type": "roberta"}, reference.bert),
    "gpt2": (GPT2, reference.gpt2),
    "llama": (LLAMA | {"tie_word_embeddings": True}, reference.llama),
    "llama 3": (LLAMA | {"rope_scaling": LLAMA3}, lambda c, p, t: reference.llama(c, p, t, stretch3)),
    "mistral": (LLAMA | {"model_type": "mistral", "sliding_window": None, "rope_theta": 100.0}, reference.llama),
    "qwen2": (LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True}, reference.llama),
    "qwen3": (LLAMA | {"model_type": "qwen3", "head_dim": 6, "rope_parameters": {"rope_theta": 10_000.0}}, reference.llama),
}


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) + (len(shape) == 1) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_a_reference(name):
    config, compute = CASES[name]
    network = pretrained(config)
    params = drawn(network.shapes)
    exact = {key: value.astype(np.float64) for key, value in params.items()}
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 11, n).tolist() for n in (5, 3, 2)]
    rows = packed([[text] for text in texts], 6)
    batch = rows._asdict()
    run = jax.jit(network.hidden if network.kind == "encoder" else lambda p, t, m: network.logits(p, {"tokens": t, "mask": m}))
    found = np.asarray(run(params, batch["tokens"], batch["mask"]))
    for row, members in enumerate(rows.members):
        for k, i in enumerate(members):
            if i >= 0:
                own = found[row][batch["mask"][row] == k + 1]
                np.testing.assert_allclose(own, compute(config, exact, np.array(texts[i])), rtol=2e-4, atol=2e-4)


def test_all_known_types_have_a_case():
    assert set(KNOWN) == {config["model_type"] for config, _ in CASES.values()}


def test_every_matrix_has_a_curvature_in_its_own_layout():
    """Through transposes, thirds of a fused kernel and look-ups alike."""
    network = pretrained(GPT2)
    params = drawn(network.shapes)
    batch = {"tokens": np.arange(10, dtype=np.int32).reshape(2, 5), "mask": np.ones((2, 5), bool)}
    found = output_curvature(network.outputs, params, [batch], key=jax.random.key(0))
    assert all(np.ndim(params[name]) == 1 for name in found.left)
    fused, wide = found["transformer.h.1.attn.c_attn.weight"], found["transformer.h.0.mlp.c_proj.weight"]
    assert fused.layout.rows_shape == (3, 8, 8) and wide.layout.rows_shape == (1, 8, 32)
    assert found["transformer.wpe.weight"].layout.rows_shape == (1, 8, 8)
    # Values have a bias behind them; queries and keys have it within a product with each other, which takes no mean up.
    assert found.shifts["transformer.h.0.mlp.c_fc.weight"].bias == "transformer.h.0.mlp.c_fc.bias"


def test_half_a_squared_change_of_a_decoders_outputs_is_the_divergence():
    network = pretrained(GPT2)
    params = drawn(network.shapes)
    other = {name: x + 1e-3 * np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape) for name, x in params.items()}
    batch = {"tokens": np.arange(10, dtype=np.int32).reshape(2, 5) % 11, "mask": np.array([[1] * 5, [1, 1, 1, 0, 0]], bool)}
    both = jax.jit(lambda p: (network.outputs(p, batch), jax.nn.log_softmax(network.logits(p, batch)[:, :-1])))
    (z, p), (z2, q) = both(params), both(other)
    counted = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    divergence = (np.exp(p) * (p - q)).sum(-1)[counted].sum()
    np.testing.assert_allclose(np.square(z2 - z).sum() / 2, divergence, rtol=0.05)
    assert not np.asarray(z)[~counted].any()


def test_scores_count_what_there_is():
    network = pretrained(BERT)
    params = drawn(network.shapes)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    batch = {"tokens": np.arange(12, dtype=np.int32).reshape(3, 4) % 11, "mask": mask}
    reference_ = np.asarray(network.outputs(params, batch))
    assert reference_.shape == (3, 1, 8)
    np.testing.assert_allclose(np.linalg.norm(reference_[:2, 0], axis=-1), 1, rtol=1e-5)
    sums, count = network.score(params, batch | {"reference": reference_[:, 0]})
    assert float(count) == 2 and abs(float(sums["cosine"]) - 2) < 1e-5
    said = network.predict(params, batch | {"reference": reference_[:, 0]})
    assert said.counted.tolist() == [True, True, False] and said.right[:2].all()
    decoder = pretrained(GPT2)
    weights = drawn(decoder.shapes)
    sums, count = decoder.score(weights, batch)
    said = decoder.predict(weights, batch)
    assert float(count) == 3 == said.counted.sum()
    np.testing.assert_allclose(float(said.sums["nats"].sum()), float(sums["nats"]), rtol=1e-6)


def test_names_with_and_without_a_prefix():
    plain = pretrained(BERT).names
    found = pretrained(BERT, [f"bert.{name}" for name in plain] + ["bert.pooler.dense.weight", "cls.predictions.bias"])
    assert found.names == {f"bert.{name}" for name in plain}
    bare = [name.removeprefix("model.") for name in pretrained(LLAMA | {"tie_word_embeddings": True}).names]
    tied = LLAMA | {"tie_word_embeddings": True}
    assert pretrained(tied, [*bare, "lm_head.weight"]).names == set(bare)
    assert pretrained(LLAMA, [*bare, "lm_head.weight"]).names == {*bare, "lm_head.weight"}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({}, None, "model_type is None; known are bert"),
        (BERT | {"model_type": "t5"}, None, "'t5'; known are bert"),
        (BERT | {"position_embedding_type": "relative_key"}, None, "position_embedding_type is 'relative_key'"),
        (BERT | {"hidden_act": "swish7"}, None, "hidden_act 'swish7' is not known"),
        ({k: v for k, v in BERT.items() if k != "hidden_size"}, None, "lacks 'hidden_size'"),
        (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2.0}}, None, "scaled by 'yarn'"),
        (LLAMA | {"model_type": "mistral", "sliding_window": 16}, None, "sliding_window of 16"),
        (BERT | {"num_attention_heads": 3}, None, "no 3 equal heads"),
        (BERT, lambda names: names[1:], "lacks 1 tensors that its config asks for"),
        (BERT, lambda names: [*names, "encoder.layer.7.output.dense.weight"], "no place for: encoder.layer.7.output.dense.weight"),
    ],
)
def test_what_does_not_fit_is_named(config, change, message):
    names = None if change is None else change(sorted(pretrained(config).names))
    with pytest.raises(ValueError, match=message):
        pretrained(config, names)


def test_tensors_of_another_shape_are_named():
    network = pretrained(BERT)
    params = drawn(network.shapes)
    params["embeddings.word_embeddings.weight"] = params["embeddings.word_embeddings.weight"][:-1]
    with pytest.raises(ValueError, match=r"word_embeddings.weight' has shape \(10, 8\), by the config it has \(11, 8\)"):
        network.hidden(params, np.zeros((1, 2), np.int32))
    with pytest.raises(ValueError, match="give batches a reference"):
        network.score(drawn(network.shapes), {"tokens": np.zeros((1, 2), np.int32)})
    with pytest.raises(ValueError, match=r"must be .n, t. both"):
        network.hidden(drawn(network.shapes), np.zeros((1, 2), np.int32), np.ones((1, 3)))


def test_stories_have_the_published_cross_entropy(data_dir):
    """1.43704 nats a token on the 200 calibration stories; see the data's README. The first 100 are half of the work."""
    folder = data_dir / "lm" / "stories260k"
    params = read_weights(folder / "model.safetensors")
    network = pretrained(json.loads((folder / "config.json").read_text()), list(params))
    with np.load(folder / "tokens.npz") as file:
        tokens, lengths = file["calibration"].astype(np.int32), file["calibration_length"]
    batches = [{"tokens": tokens[i : i + 50], "mask": np.arange(256)[None] < lengths[i : i + 50, None]} for i in range(0, 200, 50)]
    assert round(score_batches(jax.jit(network.score), params, batches)["nats"], 5) == 1.43704
