"""Hugging Face's model types: the network that a ``config.json`` describes, and the names and layouts of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flax import nnx

from bqjax.models.transformer.language import Decoder, Encoder
from bqjax.models.transformer.layers import ACTIVATIONS
from bqjax.models.transformer.settings import Rotary, TransformerConfig

__all__ = ["FAMILIES", "Family", "family_of", "prefix_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type.

    Attributes:
      kind: what the network is.
      build: ``build(config, tied)``, a network of random weights.
      tensors: tensor of each module, without ``.weight`` and ``.bias``; ``{}`` stands for a layer's number. A number
        behind ``:`` says which of three equal parts of its outputs.
      prefixes: what may stand before the names, that of checkpoints with a head last.
      unused: beginnings of names of tensors that the network has no use for.
      transposed: whether kernels are ``[out, in]``.
      tied: whether the logits are products with the embedding where the config does not say.
    """

    kind: Literal["encoder", "decoder"]
    build: Callable[[Mapping[str, Any], bool], nnx.Module]
    tensors: Mapping[str, str]
    prefixes: tuple[str, ...]
    unused: tuple[str, ...] = field(default=())
    transposed: bool = True
    tied: bool = True


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``.

    Raises:
      ValueError: no ``model_type``, or one that is not known.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"the config's model_type is {kind!r}; known are {', '.join(FAMILIES)}. Methods that need no data "
            "(k-means, Gaussian bins, rounding) take the weights of any checkpoint"
        )
    return FAMILIES[kind]


def _need(config: Mapping[str, Any], name: str) -> Any:
    if name not in config:
        raise ValueError(f"the config lacks {name!r}: is it the config.json of the whole model?")
    return config[name]


def _activation(config: Mapping[str, Any], name: str) -> str:
    found = _need(config, name)
    if found not in ACTIVATIONS:
        raise ValueError(f"the config's {name} {found!r} is not known, only {', '.join(ACTIVATIONS)}")
    return str(found)


def _refuse(config: Mapping[str, Any], name: str, *allowed: Any) -> None:
    if config.get(name, allowed[0]) not in allowed:
        raise ValueError(f"the config's {name} is {config[name]!r}, which this model type has no network for")


def _encoder(config: Mapping[str, Any], tied: bool, *, offset: int = 0) -> nnx.Module:
    del tied
    _refuse(config, "position_embedding_type", "absolute")
    _refuse(config, "is_decoder", False)
    layers = TransformerConfig(
        width=_need(config, "hidden_size"),
        layers=_need(config, "num_hidden_layers"),
        heads=_need(config, "num_attention_heads"),
        hidden=_need(config, "intermediate_size"),
        eps=config.get("layer_norm_eps", 1e-12),
        activation=_activation(config, "hidden_act"),
    )
    positions, types = _need(config, "max_position_embeddings"), config.get("type_vocab_size", 2)
    return Encoder(layers, _need(config, "vocab_size"), positions=positions, types=types, offset=offset, rngs=nnx.Rngs(0))


def _roberta(config: Mapping[str, Any], tied: bool) -> nnx.Module:
    return _encoder(config, tied, offset=config.get("pad_token_id", 1) + 1)  # rows before it are those of padding


def _gpt2(config: Mapping[str, Any], tied: bool) -> nnx.Module:
    _refuse(config, "scale_attn_weights", True)
    _refuse(config, "scale_attn_by_inverse_layer_idx", False)
    width = _need(config, "n_embd")
    layers = TransformerConfig(
        width=width,
        layers=_need(config, "n_layer"),
        heads=_need(config, "n_head"),
        hidden=config.get("n_inner") or 4 * width,
        eps=config.get("layer_norm_epsilon", 1e-5),
        activation=_activation(config, "activation_function"),
        pre_norm=True,
        causal=True,
    )
    return Decoder(layers, _need(config, "vocab_size"), positions=_need(config, "n_positions"), tied=tied, rngs=nnx.Rngs(0))


def _llama(config: Mapping[str, Any], tied: bool, *, attention_bias: bool | None = None, head_norms: bool = False) -> nnx.Module:
    if attention_bias is None:
        attention_bias = config.get("attention_bias", False)
        output_bias = attention_bias
    else:
        output_bias = False
    if config.get("use_sliding_window", config.get("model_type") == "mistral"):
        positions = config.get("max_position_embeddings", 0)
        window = config.get("sliding_window")
        if window is not None and window < positions:
            raise ValueError(f"the config's sliding_window of {window} of {positions} positions is not supported: texts see all")
    layers = TransformerConfig(
        width=_need(config, "hidden_size"),
        layers=_need(config, "num_hidden_layers"),
        heads=_need(config, "num_attention_heads"),
        kv_heads=config.get("num_key_value_heads"),
        head_width=config.get("head_dim"),
        hidden=_need(config, "intermediate_size"),
        norm="rms",
        eps=config.get("rms_norm_eps", 1e-6),
        activation=_activation(config, "hidden_act"),
        gated=True,
        pre_norm=True,
        causal=True,
        rotary=_rotary(config),
        attention_bias=attention_bias,
        output_bias=output_bias,
        mlp_bias=config.get("mlp_bias", False),
        head_norms=head_norms,
    )
    return Decoder(layers, _need(config, "vocab_size"), tied=tied, rngs=nnx.Rngs(0))


def _rotary(config: Mapping[str, Any]) -> Rotary:
    given = config.get("rope_parameters") or {}
    theta = config.get("rope_theta", given.get("rope_theta", 10_000.0))
    scaling = config.get("rope_scaling") or given
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rotary(theta=theta)
    if kind == "linear":
        return Rotary(theta=theta, factor=scaling["factor"])
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        trained = scaling["original_max_position_embeddings"]
        return Rotary(theta=theta, factor=scaling["factor"], low=low, high=high, trained=trained)
    raise ValueError(f"the config's rotary positions are scaled by {kind!r}; known are default, linear and llama3")


def _qwen2(config: Mapping[str, Any], tied: bool) -> nnx.Module:
    return _llama(config, tied, attention_bias=True)


def _qwen3(config: Mapping[str, Any], tied: bool) -> nnx.Module:
    return _llama(config, tied, head_norms=True)


_BERT = {
    "embeddings/tokens": "embeddings.word_embeddings",
    "embeddings/positions": "embeddings.position_embeddings",
    "embeddings/types": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layers/blocks/{}/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/blocks/{}/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/blocks/{}/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/blocks/{}/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/blocks/{}/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/blocks/{}/mlp/up": "encoder.layer.{}.intermediate.dense",
    "layers/blocks/{}/mlp/down": "encoder.layer.{}.output.dense",
    "layers/blocks/{}/mlp_norm": "encoder.layer.{}.output.LayerNorm",
}
_GPT2 = {
    "embeddings/tokens": "wte",
    "embeddings/positions": "wpe",
    "layers/blocks/{}/attention/query": "h.{}.attn.c_attn:0",
    "layers/blocks/{}/attention/key": "h.{}.attn.c_attn:1",
    "layers/blocks/{}/attention/value": "h.{}.attn.c_attn:2",
    "layers/blocks/{}/attention/output": "h.{}.attn.c_proj",
    "layers/blocks/{}/attention_norm": "h.{}.ln_1",
    "layers/blocks/{}/mlp/up": "h.{}.mlp.c_fc",
    "layers/blocks/{}/mlp/down": "h.{}.mlp.c_proj",
    "layers/blocks/{}/mlp_norm": "h.{}.ln_2",
    "norm": "ln_f",
}
_LLAMA = {
    "embeddings/tokens": "embed_tokens",
    "layers/blocks/{}/attention/query": "layers.{}.self_attn.q_proj",
    "layers/blocks/{}/attention/key": "layers.{}.self_attn.k_proj",
    "layers/blocks/{}/attention/value": "layers.{}.self_attn.v_proj",
    "layers/blocks/{}/attention/output": "layers.{}.self_attn.o_proj",
    "layers/blocks/{}/attention/query_norm": "layers.{}.self_attn.q_norm",
    "layers/blocks/{}/attention/key_norm": "layers.{}.self_attn.k_norm",
    "layers/blocks/{}/attention_norm": "layers.{}.input_layernorm",
    "layers/blocks/{}/mlp/gate": "layers.{}.mlp.gate_proj",
    "layers/blocks/{}/mlp/up": "layers.{}.mlp.up_proj",
    "layers/blocks/{}/mlp/down": "layers.{}.mlp.down_proj",
    "layers/blocks/{}/mlp_norm": "layers.{}.post_attention_layernorm",
    "norm": "norm",
}
_BERT_UNUSED = ("embeddings.position_ids", "pooler.", "cls.", "lm_head.", "classifier.")


def _decoder(build: Callable[[Mapping[str, Any], bool], nnx.Module]) -> Family:
    return Family(kind="decoder", build=build, tensors=_LLAMA, prefixes=("", "model."), unused=("rotary_emb.",), tied=False)


FAMILIES: dict[str, Family] = {
    "bert": Family(kind="encoder", build=_encoder, tensors=_BERT, prefixes=("", "bert."), unused=_BERT_UNUSED),
    "roberta": Family(kind="encoder", build=_roberta, tensors=_BERT, prefixes=("", "roberta."), unused=_BERT_UNUSED),
    "gpt2": Family(kind="decoder", build=_gpt2, tensors=_GPT2, prefixes=("", "transformer."), transposed=False),
    "llama": _decoder(_llama),
    "mistral": _decoder(_llama),
    "qwen2": _decoder(_qwen2),
    "qwen3": _decoder(_qwen3),
}
"""By ``model_type``."""


def prefix_of(family: Family, names: Collection[str]) -> str:
    """What stands before the names of a checkpoint's tensors."""
    first = next(iter(family.tensors.values()))
    return next((p for p in family.prefixes if any(name.startswith(f"{p}{first}.") for name in names)), family.prefixes[0])
