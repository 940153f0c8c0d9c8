"""Transformers for text: BERT-like encoders and Llama-like decoders.

References:
  Devlin et al. 2019, BERT (arXiv 1810.04805). Radford et al. 2019, GPT-2. Touvron et al. 2023, Llama (arXiv 2302.13971).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bqjax.models.transformer.attention import Places, places_of
from bqjax.models.transformer.blocks import Stack
from bqjax.models.transformer.layers import Norm
from bqjax.models.transformer.settings import TransformerConfig

__all__ = ["Decoder", "Embeddings", "Encoder"]


class Embeddings(nnx.Module):
    """Embeddings of tokens, with learned positions, types and a norm where there are some.

    Its parameters are ``tokens/embedding``, ``positions/embedding``, ``types/embedding`` and those of ``norm``.

    Args:
      config: width and norm.
      vocabulary: tokens.
      positions: learned ones; 0 for none.
      types: types of tokens, of which the first is taken; 0 for none.
      norm: whether a norm follows.
      offset: number of the first position's row.
      rngs: random numbers for the initial weights.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: int,
        *,
        positions: int = 0,
        types: int = 0,
        norm: bool = False,
        offset: int = 0,
        rngs: nnx.Rngs,
    ):
        self.offset = offset
        self.tokens = nnx.Embed(vocabulary, config.width, rngs=rngs)
        self.positions = nnx.Embed(positions, config.width, rngs=rngs) if positions else None
        self.types = nnx.Embed(types, config.width, rngs=rngs) if types else None
        self.norm = Norm(config.width, config, rngs=rngs) if norm else None

    def __call__(self, tokens: jax.Array, places: Places) -> jax.Array:
        """``[n, t] -> [n, t, width]``."""
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(places.positions + self.offset)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(tokens))
        return x if self.norm is None else self.norm(x)


class Encoder(nnx.Module):
    """A BERT-like encoder.

    Its parameters are those of ``embeddings`` (:class:`Embeddings`) and of ``layers``
    (:class:`~bqjax.models.transformer.blocks.Stack`).

    Args:
      config: of the layers.
      vocabulary, positions, types, offset: see :class:`Embeddings`.
      scan: whether the layers' parameters are stacked.
      rngs: random numbers for the initial weights.

    Example:
      >>> config = TransformerConfig(width=8, layers=2, heads=2, hidden=16)
      >>> tokens = jnp.zeros((3, 5), jnp.int32)
      >>> nnx.eval_shape(lambda: Encoder(config, 10, positions=6, types=2, rngs=nnx.Rngs(0))(tokens)).shape
      (3, 5, 8)
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: int,
        *,
        positions: int,
        types: int = 0,
        offset: int = 0,
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        self.embeddings = Embeddings(config, vocabulary, positions=positions, types=types, norm=True, offset=offset, rngs=rngs)
        self.layers = Stack(config, scan=scan, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """What the last layer makes of each token.

        Args:
          tokens: ``[n, t]`` int32.
          mask: ``[n, t]``, see :func:`~bqjax.models.transformer.attention.places_of`; None for rows full of one text.

        Returns:
          ``[n, t, width]``, meaningless for padding.
        """
        places = places_of(jnp.ones_like(tokens) if mask is None else mask, causal=False)
        return self.layers(self.embeddings(tokens, places), places)


class Decoder(nnx.Module):
    """A decoder in the way of Llama, or, with learned positions, of GPT-2.

    Its parameters are those of ``embeddings`` (:class:`Embeddings`), of ``layers``
    (:class:`~bqjax.models.transformer.blocks.Stack`) and of ``norm``, and ``head/kernel`` where the embedding is not tied to it.

    Args:
      config: of the layers; they are made causal by ``config.causal``.
      vocabulary: tokens.
      positions: learned ones; 0 where ``config.rotary`` has them.
      tied: whether the logits are products with the embedding.
      scan: whether the layers' parameters are stacked.
      rngs: random numbers for the initial weights.

    Raises:
      ValueError: the layers are not causal.

    Example:
      >>> config = TransformerConfig(width=8, layers=2, heads=2, hidden=16, causal=True, pre_norm=True)
      >>> tokens = jnp.zeros((3, 5), jnp.int32)
      >>> nnx.eval_shape(lambda: Decoder(config, 10, positions=6, scan=True, rngs=nnx.Rngs(0))(tokens)).shape
      (3, 5, 10)
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: int,
        *,
        positions: int = 0,
        tied: bool = True,
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        if not config.causal:
            raise ValueError("a decoder's layers must be causal: set causal=True")
        self.embeddings = Embeddings(config, vocabulary, positions=positions, rngs=rngs)
        self.layers = Stack(config, scan=scan, rngs=rngs)
        self.norm = Norm(config.width, config, rngs=rngs)
        self.head = None if tied else nnx.Linear(config.width, vocabulary, use_bias=False, rngs=rngs)

    def hidden(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """What the logits are made of, ``[n, t, width]``; arguments are those of a call."""
        places = places_of(jnp.ones_like(tokens) if mask is None else mask, causal=True)
        return self.norm(self.layers(self.embeddings(tokens, places), places))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """``[n, t, width] -> [n, t, vocabulary]``."""
        if self.head is not None:
            return self.head(hidden)
        return jax.lax.dot_general(hidden, self.embeddings.tokens.embedding[...], (((hidden.ndim - 1,), (1,)), ((), ())))

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits of the token that follows each.

        Args:
          tokens: ``[n, t]`` int32.
          mask: ``[n, t]``, see :func:`~bqjax.models.transformer.attention.places_of`; None for rows full of one text.

        Returns:
          ``[n, t, vocabulary]``.
        """
        return self.logits(self.hidden(tokens, mask))
