"""Tiny folders as Hugging Face's libraries write them: random transformers of a few thousand weights, with a tokenizer of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from bqjax.models.transformer.pretrained import pretrained

WORDS = [f"w{i}" for i in range(28)]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "hidden_act": "gelu",
}


def tokenizer(*, begin: bool = True, end: bool = False, words: list[str] = WORDS) -> Tokenizer:
    """Words by number from 4 on, with marks around a text."""
    made = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "<s>": 2, "</s>": 3} | {w: i + 4 for i, w in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = Whitespace()
    template = " ".join((["<s>"] if begin else []) + ["$A"] + (["</s>"] if end else []))
    made.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 2), ("</s>", 3)])
    # As many folders have it, and as no text for calibration wants it.
    made.enable_padding(length=12)
    made.enable_truncation(max_length=8)
    return made


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors by the names of a plain model."""
    rng = np.random.default_rng(seed)
    norms = ("norm.weight", "layernorm.weight", "LayerNorm.weight")
    return {
        name: np.ones(shape, np.float32) if name.endswith(norms) else 0.4 * rng.normal(size=shape).astype(np.float32)
        for name, shape in pretrained(config).shapes.items()
    }


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray] | None = None, **marks: Any) -> Path:
    """A folder with one file of weights."""
    folder.mkdir()
    save_file(weights(config) if tensors is None else tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(**marks).save(str(folder / "tokenizer.json"))
    return folder


def text(n: int, seed: int = 0) -> str:
    """So many lines of seven random words."""
    rng = np.random.default_rng(seed)
    return "\n".join(" ".join(rng.choice(WORDS, 7)) for _ in range(n))
