"""Transformers in NumPy by the names of Hugging Face's tensors, one text at a time, in float64, written from the papers."""

from __future__ import annotations

import math

import numpy as np


def _erf(x):
    return np.vectorize(math.erf)(x)


def gelu(x):
    return x * (1 + _erf(x / math.sqrt(2))) / 2


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def attend(q, k, v, causal):
    """``[t, heads, size]`` each, keys and values of as many heads."""
    t, heads, size = q.shape
    out = np.zeros_like(q)
    for h in range(heads):
        for i in range(t):
            last = i + 1 if causal else t
            weights = softmax(k[:last, h] @ q[i, h] / math.sqrt(size))
            out[i, h] = weights @ v[:last, h]
    return out.reshape(t, heads * size)


def rotate(x, theta, stretch=lambda frequency: frequency):
    """Hugging Face's ``rotate_half``."""
    t, _, size = x.shape
    frequency = np.array([stretch(theta ** (-2 * i / size)) for i in range(size // 2)])
    angle = np.concatenate([np.arange(t)[:, None] * frequency] * 2, axis=1)[:, None]
    half = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
    return x * np.cos(angle) + half * np.sin(angle)


def bert(config, p, tokens):
    def dense(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], config["layer_norm_eps"])

    t, heads = len(tokens), config["num_attention_heads"]
    offset = config["pad_token_id"] + 1 if config["model_type"] == "roberta" else 0
    x = p["embeddings.word_embeddings.weight"][tokens] + p["embeddings.position_embeddings.weight"][offset : offset + t]
    x = norm(x + p["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (dense(x, f"{layer}.attention.self.{n}").reshape(t, heads, -1) for n in ("query", "key", "value"))
        x = norm(x + dense(attend(q, k, v, False), f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = gelu(dense(x, f"{layer}.intermediate.dense"))
        x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


def gpt2(config, p, tokens):
    def dense(x, name):
        return x @ p[f"transformer.{name}.weight"] + p[f"transformer.{name}.bias"]

    def norm(x, name):
        return layer_norm(x, p[f"transformer.{name}.weight"], p[f"transformer.{name}.bias"], config["layer_norm_epsilon"])

    t, heads = len(tokens), config["n_head"]
    x = p["transformer.wte.weight"][tokens] + p["transformer.wpe.weight"][:t]
    for i in range(config["n_layer"]):
        q, k, v = (y.reshape(t, heads, -1) for y in np.split(dense(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=1))
        x = x + dense(attend(q, k, v, True), f"h.{i}.attn.c_proj")
        x = x + dense(gelu_tanh(dense(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ p["transformer.wte.weight"].T


def llama(config, p, tokens, stretch=lambda frequency: frequency):
    """Llama, Qwen2 and Qwen3: what there is a tensor for is used."""
    eps, theta = config["rms_norm_eps"], config.get("rope_theta", 10_000.0)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]

    def dense(x, name):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    t = len(tokens)
    x = p["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y = rms_norm(x, p[f"{layer}.input_layernorm.weight"], eps)
        q = dense(y, f"{layer}.self_attn.q_proj").reshape(t, heads, -1)
        k, v = (dense(y, f"{layer}.self_attn.{n}_proj").reshape(t, groups, -1) for n in "kv")
        if f"{layer}.self_attn.q_norm.weight" in p:
            q = rms_norm(q, p[f"{layer}.self_attn.q_norm.weight"], eps)
            k = rms_norm(k, p[f"{layer}.self_attn.k_norm.weight"], eps)
        q, k = rotate(q, theta, stretch), rotate(k, theta, stretch)
        k, v = (np.repeat(z, heads // groups, axis=1) for z in (k, v))
        x = x + dense(attend(q, k, v, True), f"{layer}.self_attn.o_proj")
        y = rms_norm(x, p[f"{layer}.post_attention_layernorm.weight"], eps)
        x = x + dense(silu(dense(y, f"{layer}.mlp.gate_proj")) * dense(y, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
    x = rms_norm(x, p["model.norm.weight"], eps)
    return x @ p.get("lm_head.weight", p["model.embed_tokens.weight"]).T


def classifier(p, x, eps, pre_norm, act, heads):
    """ViT (``pre_norm``) and KWT, by the names of this project's modules (``kernel [in, out]``), from a sequence ``[t, width]``."""

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p.get(f"{name}/bias", 0)

    def norm(x, name):
        return layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"], eps)

    x = np.concatenate([p["token"][0], x]) + p["positions"][0]
    t = len(x)
    for i in range(sum(name.endswith("mlp/up/kernel") for name in p)):
        block = f"layers/blocks/{i}"

        def attention(y, block=block):
            q, k, v = (dense(y, f"{block}/attention/{n}").reshape(t, heads, -1) for n in ("query", "key", "value"))
            return dense(attend(q, k, v, False), f"{block}/attention/output")

        def mlp(y, block=block):
            return dense(act(dense(y, f"{block}/mlp/up")), f"{block}/mlp/down")

        if pre_norm:
            x = x + attention(norm(x, f"{block}/attention_norm"))
            x = x + mlp(norm(x, f"{block}/mlp_norm"))
        else:
            x = norm(x + attention(x), f"{block}/attention_norm")
            x = norm(x + mlp(x), f"{block}/mlp_norm")
    x = norm(x[0], "norm") if pre_norm else x[0]
    return dense(x, "head")
