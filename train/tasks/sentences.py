"""A sentence encoder as a task: similarity of pairs (STS-B), and what a linear probe reads from its embeddings (SST-2)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.adapters.safetensors import read_weights
from bqjax.core.classification import batches, classification_task
from bqjax.core.task import Task
from bqjax.models.transformer.packing import packed
from bqjax.models.transformer.pretrained import Pretrained, pretrained
from train.data.sentences import Pairs, read_sst2, read_sts, tokens_of
from train.tasks.similarity import similarity_predict, similarity_score

__all__ = ["fit_probe", "load_encoder", "sst2_task", "sts_task"]

WIDTH = 128  # tokens of a row
ROWS = 16  # that are embedded at a time
SUBSET_SEED = 0
FOLDS = 10


def load_encoder(folder: str | os.PathLike[str]) -> tuple[Pretrained, dict[str, np.ndarray]]:
    """An encoder of Hugging Face and the tensors that it uses (not the pooler, of which sentence embeddings know nothing).

    Raises:
      ValueError: a file is missing or damaged, or the folder is that of no encoder.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the folder must hold config.json, model.safetensors and tokenizer.json")
    tensors = read_weights(folder / "model.safetensors")
    network = pretrained(json.loads(path.read_text(encoding="utf-8")), list(tensors))
    if network.kind != "encoder":
        raise ValueError(f"{folder} holds a {network.kind}, and sentence embeddings are an encoder's")
    return network, {name: tensors[name] for name in tensors if name in network.names}


def _packed_pairs(folder: Path, pairs: Pairs, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """One batch of all pairs; ``scores [rows, s / 2]`` is what people say of those that stand in a row."""
    first, second = (tokens_of(folder, [texts[i] for i in rows]) for texts in (pairs.first, pairs.second))
    found = packed([[a, b] for a, b in zip(first, second, strict=True)], WIDTH)
    scores = np.where(found.members >= 0, pairs.scores[rows][np.maximum(found.members, 0)], 0)
    return {"tokens": found.tokens, "mask": found.mask, "counted": found.counted, "scores": scores.astype(np.float32)}


def sts_task(data_dir: str | os.PathLike[str], model: str = "minilm", *, n_calibration: int = 1024) -> Task:
    """Sentence similarity: Spearman's correlation of cosines with what people say, over all pairs of STS-B's test set.

    Calibration is on pairs of the training set, whose sentences are also what the correlation of a search is taken on.

    Args:
      data_dir: the folder with ``text/`` and the model's folder.
      model: name of that folder.
      n_calibration: pairs to calibrate on, a fixed random subset; a smaller one is part of every larger one.

    Raises:
      ValueError: a file is missing or damaged, or there are not so many pairs.
      ImportError: ``tokenizers`` is not installed.
    """
    data_dir = Path(data_dir)
    folder = data_dir / model
    network, params = load_encoder(folder)
    train, test = read_sts(data_dir / "text", "train"), read_sts(data_dir / "text", "test")
    if not 1 <= n_calibration <= len(train.scores):
        raise ValueError(f"n_calibration must be from 1 to {len(train.scores)}, got {n_calibration}")
    chosen = np.random.default_rng(SUBSET_SEED).permutation(len(train.scores))[:n_calibration]
    calibration = _packed_pairs(folder, train, chosen)
    tokens = int((calibration["mask"] > 0).sum())

    def cosines(params: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows = {name: jnp.asarray(batch[name]) for name in ("tokens", "mask", "counted")}
        # Some rows at a time: activations of all would be gigabytes.
        embedded = jax.lax.map(
            lambda row: network.embeddings(params, jax.tree.map(lambda x: x[None], row))[0], rows, batch_size=ROWS
        )
        pairs = embedded.reshape(embedded.shape[0], -1, 2, embedded.shape[-1])
        cosine = (pairs[:, :, 0] * pairs[:, :, 1]).sum(-1).reshape(-1)
        return cosine, jnp.asarray(batch["scores"]).reshape(-1), rows["counted"][:, ::2].reshape(-1)

    return Task(
        name=f"{model}, STS-B",
        params=params,
        score=similarity_score(cosines),
        predict=similarity_predict(cosines),
        outputs=network.outputs,
        calibration=[calibration],
        test=[_packed_pairs(folder, test, np.arange(len(test.scores)))],
        metric="spearman",
        rank_by="spearman",
        calibration_name=f"{2 * n_calibration:,} sentences of STS-B's training set",
        test_name="the test set of STS-B",
        note=_few(tokens, params),
    )


def _few(tokens: int, params: Mapping[str, np.ndarray]) -> str:
    """What is said where there are few tokens for the widest layer's inputs."""
    widest = max(x.shape[1] for name, x in params.items() if x.ndim == 2 and "embeddings" not in name)
    if tokens >= 10 * widest:
        return ""
    return (
        f"{tokens:,} tokens to calibrate on are {tokens / widest:.1f} for each of the {widest:,} inputs of the widest layer: "
        "with fewer than ten, more calibration data make smaller files"
    )


def fit_probe(features: np.ndarray, labels: np.ndarray, ridge: float = 1.0, steps: int = 30) -> np.ndarray:
    """Logistic regression with a ridge, by Newton's method.

    Args:
      features: ``[n, d]``.
      labels: ``[n]`` of 0 and 1.
      ridge: half of it times the squared weights is added to the negative log-likelihood; not for the intercept.
      steps: of Newton's method.

    Returns:
      ``[d + 1]`` float64, the intercept last.
    """
    x = np.concatenate([np.asarray(features, np.float64), np.ones((len(features), 1))], axis=1)
    penalty = np.full(x.shape[1], ridge)
    penalty[-1] = 0
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(x @ w)))
        gradient = x.T @ (p - labels) + penalty * w
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9), gradient)
        w = w - step
        if np.abs(step).max() < 1e-8:
            break
    return w


def sst2_task(data_dir: str | os.PathLike[str], model: str = "minilm") -> Task:
    """Sentiment by a linear probe: ten probes of the uncompressed network's embeddings, each for the tenth it has not seen.

    The probes stay as they are, so that a compressed network must give the same features. The first tenth is the task's calibration
    data, the other nine are what is reported.

    Args:
      data_dir: the folder with ``text/`` and the model's folder.
      model: name of that folder.

    Raises:
      ValueError: a file is missing or damaged.
      ImportError: ``tokenizers`` is not installed.
    """
    folder = Path(data_dir) / model
    network, params = load_encoder(folder)
    sentences, labels = read_sst2(Path(data_dir) / "text" / "sst2_dev.tsv")
    texts = tokens_of(folder, sentences)
    tokens = np.zeros((len(texts), max(map(len, texts))), np.int32)
    mask = np.zeros_like(tokens)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    fold = np.random.default_rng(SUBSET_SEED).permutation(len(texts)) % FOLDS
    embed = jax.jit(lambda params, tokens, mask: network.embeddings(params, {"tokens": tokens, "mask": mask})[:, 0])
    at = range(0, len(texts), 4 * ROWS)
    features = np.concatenate([np.asarray(embed(params, tokens[i : i + 4 * ROWS], mask[i : i + 4 * ROWS])) for i in at])
    probes = np.stack([fit_probe(features[fold != k], labels[fold != k]) for k in range(FOLDS)]).astype(np.float32)

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        """Logits ``[n, 2]`` of rows of fold, tokens and mask."""
        own, tokens, mask = inputs[:, 0, 0], inputs[:, 1], inputs[:, 2]
        own_probe = jnp.asarray(probes)[own]
        margin = (embed(params, tokens, mask) * own_probe[:, :-1]).sum(-1) + own_probe[:, -1]
        return jnp.stack([-margin / 2, margin / 2], axis=1)

    inputs = np.stack([np.broadcast_to(fold[:, None], tokens.shape), tokens, mask], axis=1).astype(np.int32)
    made = [batches(inputs[rows], labels[rows], 4 * ROWS) for rows in (fold == 0, fold != 0)]
    return classification_task(
        apply,
        params,
        made[0],
        made[1],
        name=f"{model}, SST-2 by a linear probe",
        calibration_name="a tenth of SST-2's development set",
        test_name="the rest of SST-2's development set",
    )
