"""Attention: of several heads, with keys and values that heads share, causal or not, within texts that share a row."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from bqjax.models.transformer.layers import Norm, rotated
from bqjax.models.transformer.settings import TransformerConfig

__all__ = ["Attention", "Places", "places_of"]


class Places:
    """Where each position of a batch stands.

    Attributes:
      positions: ``[n, t]`` int32, from the start of its text.
      seen: ``[n, t, t]`` bool, which positions (last axis) a position sees.
    """

    def __init__(self, positions: jax.Array, seen: jax.Array):
        self.positions, self.seen = positions, seen


def places_of(mask: jax.Array, *, causal: bool) -> Places:
    """Positions, and what each of them sees, from a mask.

    Args:
      mask: ``[n, t]`` bool, or integers: 0 for padding, and texts that stand in one row one after the other by their number.
        Positions see their own text only. Padding sees padding, so that nothing is divided by zero.
      causal: whether a position sees only itself and those before it.

    Example:
      >>> places = places_of(jnp.array([[1, 1, 2, 0]]), causal=True)
      >>> places.positions.tolist(), places.seen[0].astype(int).tolist()
      ([[0, 1, 0, 0]], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    """
    text = mask.astype(jnp.int32)
    index = jnp.arange(text.shape[1], dtype=jnp.int32)[None]
    starts = jnp.pad(text[:, 1:] != text[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    # Padding may be longer than any text: its positions would be beyond those that are learned.
    positions = jnp.where(text == 0, 0, index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1))
    seen = text[:, :, None] == text[:, None, :]
    return Places(positions, seen & (index[:, :, None] >= index[:, None, :]) if causal else seen)


class Attention(nnx.Module):
    """Scaled dot-product attention of several heads.

    Its parameters are ``query``, ``key``, ``value`` and ``output``, each with ``kernel`` and, where there is one, ``bias``; with
    norms of heads also ``query_norm/scale`` and ``key_norm/scale``.

    Args:
      config: its sizes and kind.
      rngs: random numbers for the initial weights.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        linear = functools.partial(nnx.Linear, config.width, use_bias=config.attention_bias, rngs=rngs)
        self.query = linear(config.heads * config.head_size)
        self.key = linear(config.key_heads * config.head_size)
        self.value = linear(config.key_heads * config.head_size)
        self.output = nnx.Linear(config.heads * config.head_size, config.width, use_bias=config.output_bias, rngs=rngs)
        self.query_norm = Norm(config.head_size, config, rngs=rngs) if config.head_norms else None
        self.key_norm = Norm(config.head_size, config, rngs=rngs) if config.head_norms else None

    def __call__(self, x: jax.Array, places: Places) -> jax.Array:
        """``[n, t, width] -> [n, t, width]``."""
        config = self.config
        (n, t), size, groups = x.shape[:2], config.head_size, config.key_heads
        query = self.query(x).reshape(n, t, config.heads, size)
        key, value = self.key(x).reshape(n, t, groups, size), self.value(x).reshape(n, t, groups, size)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if config.rotary is not None:
            query, key = (rotated(y, places.positions, config.rotary) for y in (query, key))
        query = query.reshape(n, t, groups, config.heads // groups, size)
        scores = jnp.einsum("nqghs,nkgs->nghqk", query, key) / math.sqrt(size)
        scores = jnp.where(places.seen[:, None, None], scores, jnp.finfo(scores.dtype).min)
        seen = jnp.einsum("nghqk,nkgs->nqghs", jax.nn.softmax(scores, axis=-1), value)
        return self.output(seen.reshape(n, t, config.heads * size))
