"""A transformer layer, and stacks of them: one by one, or as one ``scan`` over parameters that are stacked."""

from __future__ import annotations

import jax
from flax import nnx

from bqjax.models.transformer.attention import Attention, Places
from bqjax.models.transformer.layers import MLP, Norm
from bqjax.models.transformer.settings import TransformerConfig

__all__ = ["Block", "Stack"]


class Block(nnx.Module):
    """Attention and MLP, each beside its own input.

    Its parameters are those of ``attention``, ``attention_norm``, ``mlp`` and ``mlp_norm``.

    Args:
      config: its sizes and kind.
      rngs: random numbers for the initial weights.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.pre_norm = config.pre_norm
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = Norm(config.width, config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.mlp_norm = Norm(config.width, config, rngs=rngs)

    def __call__(self, x: jax.Array, places: Places) -> jax.Array:
        """``[n, t, width] -> [n, t, width]``."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), places)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, places))
        return self.mlp_norm(x + self.mlp(x))


class Stack(nnx.Module):
    """Layers one after the other.

    Its parameters are ``blocks/0/...``, ``blocks/1/...`` and so on; with ``scan`` they are ``blocks/...``, stacked along a first
    axis of ``config.layers``, and the program holds one layer, however many there are.

    Args:
      config: of each layer, and how many.
      scan: whether parameters are stacked.
      rngs: random numbers for the initial weights.
    """

    def __init__(self, config: TransformerConfig, *, scan: bool = False, rngs: nnx.Rngs):
        self.scan = scan
        if scan:
            keys = jax.random.split(rngs.params(), config.layers)
            self.blocks = nnx.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        else:
            self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])

    def __call__(self, x: jax.Array, places: Places) -> jax.Array:
        """``[n, t, width] -> [n, t, width]``."""
        if not self.scan:
            for block in self.blocks:
                x = block(x, places)
            return x
        graph, stacked = nnx.split(self.blocks)
        return jax.lax.scan(lambda y, own: (nnx.merge(graph, own)(y, places), None), x, stacked)[0]
