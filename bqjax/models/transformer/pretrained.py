"""Checkpoints of Hugging Face's transformers as pure functions of their own tensors.

The parameters stay what the checkpoint has: a flat dict of arrays by the names and in the layouts of the folder. They are put
into the modules of :mod:`bqjax.models.transformer.language` by transposes and slices alone, so that what is known of a module's
kernel is known of the tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.core.task import Predictions
from bqjax.core.tree import named_leaves
from bqjax.models.transformer.families import FAMILIES, Family, family_of, prefix_of
from bqjax.models.transformer.language import Decoder

__all__ = ["KNOWN", "Pretrained", "pretrained"]

KNOWN = tuple(FAMILIES)
"""The model types that have a network."""

_SUFFIX = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_SHOWN = 6


class _Source(NamedTuple):
    """Where a variable's values come from: a tensor, which third of its last axis, and whether it is transposed."""

    tensor: str
    part: int | None
    transposed: bool

    def shape(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor."""
        whole = own if self.part is None else (*own[:-1], 3 * own[-1])
        return whole[::-1] if self.transposed else whole

    def values(self, tensor: jax.Array) -> jax.Array:
        """Of the variable. Traceable."""
        tensor = jnp.asarray(tensor).astype(jnp.float32)
        if self.transposed:
            tensor = tensor.T
        if self.part is None:
            return tensor
        size = tensor.shape[-1] // 3
        return jax.lax.slice_in_dim(tensor, self.part * size, (self.part + 1) * size, axis=-1)


class Pretrained:
    """A checkpoint's network as functions of its tensors. Made by :func:`pretrained`; all methods are traceable.

    A batch is a mapping of arrays of ``n`` rows:

    - ``tokens [n, t]`` integers;
    - ``mask [n, t]`` bool, or the number of the text within the row that a position belongs to, 0 for padding: see
      :func:`~bqjax.models.transformer.attention.places_of`;
    - ``counted [n, s]`` of encoders, which of the row's texts there are; without it a row is one text, or none where it
      is all padding;
    - ``reference [n, s, width]`` (or ``[n, width]``) of an encoder's score: embeddings that its own are compared with.

    Attributes:
      kind: ``"encoder"`` or ``"decoder"``.
      vocabulary: tokens.
      positions: the most tokens of a text.
      shapes: of the tensors that the network uses, by name.
    """

    kind: Literal["encoder", "decoder"]

    def __init__(self, network: nnx.Module, family: Family, prefix: str, vocabulary: int, positions: int):
        self.kind, self.vocabulary, self.positions = family.kind, vocabulary, positions
        self._graph, state = nnx.split(network)
        self._structure = jax.tree.structure(nnx.to_pure_dict(state))
        self._variables = {name: tuple(leaf.shape) for name, leaf in named_leaves(nnx.to_pure_dict(state)).items()}
        self._sources = {name: _source(name, family, prefix) for name in self._variables}
        self.shapes = {source.tensor: source.shape(self._variables[name]) for name, source in self._sources.items()}

    @property
    def names(self) -> frozenset[str]:
        """Of the tensors that the network uses; what else a checkpoint has (a pooler) may be left out."""
        return frozenset(self.shapes)

    def check(self, params: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` where tensors are missing or of another shape than the config says."""
        missing = [name for name in self.shapes if name not in params]
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} tensors that its config asks for: {_listed(missing)}")
        for name, shape in self.shapes.items():
            if tuple(np.shape(params[name])) != shape:
                raise ValueError(f"tensor {name!r} has shape {tuple(np.shape(params[name]))}, by the config it has {shape}")

    def _network(self, params: Mapping[str, Any]) -> Any:
        self.check(params)
        values = [source.values(params[source.tensor]) for source in self._sources.values()]
        return nnx.merge(self._graph, jax.tree.unflatten(self._structure, values))

    def _tokens(self, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        tokens = jnp.asarray(batch["tokens"]).astype(jnp.int32)
        mask = batch.get("mask")
        mask = jnp.ones_like(tokens) if mask is None else jnp.asarray(mask).astype(jnp.int32)
        if tokens.ndim != 2 or mask.shape != tokens.shape:
            raise ValueError(f"tokens and mask must be [n, t] both, got {tokens.shape} and {mask.shape}")
        return tokens, mask

    def hidden(self, params: Mapping[str, Any], tokens: Any, mask: Any = None) -> jax.Array:
        """What the last layer makes of each token.

        Args:
          params: the checkpoint's tensors, floating point; those that the network has no use for are not looked at.
          tokens, mask: see the class.

        Returns:
          ``[n, t, width]`` float32, meaningless for padding.

        Raises:
          ValueError: tensors are missing or of another shape.
        """
        network = self._network(params)
        tokens, mask = self._tokens({"tokens": tokens, "mask": mask})
        return network.hidden(tokens, mask) if isinstance(network, Decoder) else network(tokens, mask)

    def logits(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
        """Of a decoder, ``[n, t, vocabulary]``: what follows each token."""
        return self._network(params)(*self._tokens(batch))

    def embeddings(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
        """Of an encoder: means of the last layer over each text, of length 1; ``[n, s, width]``, zeros for texts that are none."""
        tokens, mask = self._tokens(batch)
        hidden = self.hidden(params, tokens, mask)
        counted = batch.get("counted")
        texts = 1 if counted is None else counted.shape[1]
        own = (mask[:, :, None] == jnp.arange(1, texts + 1, dtype=jnp.int32)[None, None]).astype(jnp.float32)
        mean = jnp.einsum("nts,ntd->nsd", own, hidden) / jnp.maximum(own.sum(1), 1)[:, :, None]
        return mean * jax.lax.rsqrt(jnp.maximum(jnp.square(mean).sum(-1, keepdims=True), 1e-24))

    def outputs(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
        """What curvature is taken of, zero for padding.

        Of an encoder the texts' embeddings ``[n, s, width]``. Of a decoder ``2 sqrt(p)`` ``[n, t - 1, vocabulary]`` with ``p`` the
        probabilities of the next token: half of a small squared change of these is the Kullback-Leibler divergence in nats.
        """
        if self.kind == "encoder":
            return self.embeddings(params, batch)
        log_p = jax.nn.log_softmax(self.logits(params, batch)[:, :-1])
        return jnp.where(self.predicted(batch)[:, :, None], 2 * jnp.exp(log_p / 2), 0)

    def predicted(self, batch: Mapping[str, Any]) -> jax.Array:
        """Which tokens but the first are predicted from one before them in their text, ``[n, t - 1]`` bool."""
        mask = self._tokens(batch)[1]
        return (mask[:, 1:] != 0) & (mask[:, 1:] == mask[:, :-1])

    def score(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict[str, jax.Array], jax.Array]:
        """The contract of :mod:`bqjax.core.task`.

        Of a decoder ``"nats"``, the cross-entropy, over predicted tokens. Of an encoder ``"cosine"`` with the batch's
        ``reference``, over texts.
        """
        if self.kind == "decoder":
            return {"nats": self._nats(params, batch)[0].sum()}, self.predicted(batch).sum().astype(jnp.float32)
        cosine, counted = self._cosine(params, batch)
        return {"cosine": cosine.sum()}, counted.sum().astype(jnp.float32)

    def predict(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Predictions:
        """Predictions with each row's part in the score's sums, from which paired errors are taken.

        Of a decoder the most probable next tokens, and ``"nats"`` of each row; of an encoder whether the cosine is above 0.9.
        """
        if self.kind == "encoder":
            cosine, counted = self._cosine(params, batch)
            near = cosine.reshape(-1) > 0.9
            return Predictions(near.astype(jnp.int32), near, counted.reshape(-1), {"cosine": cosine.reshape(-1)})
        nats, guess, right = self._nats(params, batch)
        flat = self.predicted(batch).reshape(-1)
        return Predictions(guess.reshape(-1), right.reshape(-1), flat, {"nats": nats.sum(1)})

    def _nats(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of each token that follows, ``[n, t - 1]``: cross-entropy (0 if not predicted), guess, and if it is right."""
        logits, following = self.logits(params, batch)[:, :-1], self._tokens(batch)[0][:, 1:]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), following[:, :, None], axis=-1)[:, :, 0]
        guess = jnp.argmax(logits, axis=-1)
        return jnp.where(self.predicted(batch), -chosen, 0), guess, guess == following

    def _cosine(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """``[n, s]``, and which texts count."""
        if batch.get("reference") is None:
            raise ValueError("the score of an encoder compares embeddings: give batches a reference [n, s, width]")
        found = self.embeddings(params, batch)
        counted = batch.get("counted")
        counted = self._tokens(batch)[1].any(1, keepdims=True) if counted is None else jnp.asarray(counted) != 0
        cosine = (found * jnp.asarray(batch["reference"]).reshape(found.shape)).sum(-1)
        return jnp.where(counted, cosine, 0), counted


def pretrained(config: Mapping[str, Any], names: Collection[str] | None = None) -> Pretrained:
    """The network of a checkpoint.

    Args:
      config: what its ``config.json`` holds.
      names: of its tensors; None takes those of the family's plain model.

    Raises:
      ValueError: a ``model_type`` or a setting that is not known; tensors that are missing, or that the model type does not have.

    Example:
      >>> config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 10, "n_positions": 4}
      >>> network = pretrained(config | {"activation_function": "gelu_new"})
      >>> network.kind, network.shapes["transformer.h.0.attn.c_attn.weight"]
      ('decoder', (8, 24))
    """
    family = family_of(config)
    prefix = prefix_of(family, names) if names is not None else family.prefixes[0 if family.kind == "encoder" else -1]
    tied = bool(config.get("tie_word_embeddings", family.tied))
    network = nnx.eval_shape(lambda: family.build(config, tied))
    positions = config.get("max_position_embeddings", config.get("n_positions", 0))
    reserved = config.get("pad_token_id", 1) + 1 if config["model_type"] == "roberta" else 0
    found = Pretrained(network, family, prefix, config["vocab_size"], positions - reserved)
    if names is not None:
        _check_names(found, family, prefix, names, tied)
    return found


def _check_names(found: Pretrained, family: Family, prefix: str, names: Collection[str], tied: bool) -> None:
    missing = [name for name in found.shapes if name not in names]
    if missing:
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors that its config asks for: {_listed(missing)}")
    ignored = tuple(start for unused in family.unused for start in (unused, prefix + unused))
    other = [name for name in names if name not in found.shapes and not name.startswith(ignored) and not _buffer(name)]
    if unknown := [name for name in other if not (tied and name == "lm_head.weight")]:
        raise ValueError(
            f"the checkpoint has {len(unknown)} tensors that its model type has no place for: {_listed(unknown)}. Is its config "
            "that of another model? Methods that need no data take any tensors"
        )


def _buffer(name: str) -> bool:
    """Whether a tensor is no weight: masks and wavelengths that older checkpoints store."""
    return name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))


def _source(variable: str, family: Family, prefix: str) -> _Source:
    module, _, leaf = variable.rpartition("/")
    if module == "head":
        return _Source("lm_head.weight", None, True)
    number = re.search(r"/(\d+)/", module)
    template = family.tensors[module if number is None else module.replace(number[0], "/{}/", 1)]
    name, _, part = template.format("" if number is None else number[1]).partition(":")
    transposed = leaf == "kernel" and family.transposed
    return _Source(f"{prefix}{name}.{_SUFFIX[leaf]}", int(part) if part else None, transposed)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
