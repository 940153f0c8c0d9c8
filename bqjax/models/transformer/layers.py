"""Norms, the MLP and rotary positions of transformers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.models.transformer.settings import Rotary, TransformerConfig

__all__ = ["ACTIVATIONS", "MLP", "Norm", "frequencies", "rotated"]

_TANH_GELU = functools.partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
"""Activations by the names of Hugging Face's configs."""


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over the last axis; its parameters are ``scale`` and, of LayerNorm, ``bias``.

    Args:
      width: of the last axis.
      config: which norm, and its ``eps``.
      rngs: not used.
    """

    def __init__(self, width: int, config: TransformerConfig, *, rngs: nnx.Rngs):
        del rngs
        self.eps = config.eps
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if config.norm == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.bias is not None:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        x = x * _beside(self.scale[...], x)
        return x if self.bias is None else x + _beside(self.bias[...], x)


def _beside(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class MLP(nnx.Module):
    """The position-wise MLP: ``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))``.

    Args:
      config: its sizes and activation.
      rngs: random numbers for the initial weights.

    Raises:
      ValueError: the activation is not known.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        if config.activation not in ACTIVATIONS:
            raise ValueError(f"activation {config.activation!r} is not known, only {', '.join(ACTIVATIONS)}")
        linear = functools.partial(nnx.Linear, use_bias=config.mlp_bias, rngs=rngs)
        self.activation = config.activation
        self.gate = linear(config.width, config.hidden) if config.gated else None
        self.up = linear(config.width, config.hidden)
        self.down = linear(config.hidden, config.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        inner = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(inner)


def frequencies(rotary: Rotary, width: int) -> np.ndarray:
    """Angle by which a position turns each pair, ``[width / 2]`` float64, in radians."""
    own = rotary.theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if rotary.low is None or rotary.high is None or rotary.trained is None:
        return own / rotary.factor
    turns = rotary.trained * own / (2 * math.pi)  # over the positions it was trained on
    blend = np.clip((turns - rotary.low) / (rotary.high - rotary.low), 0, 1)
    return own * (blend + (1 - blend) / rotary.factor)


def rotated(x: jax.Array, positions: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotary positions: the two halves of each head turned against each other.

    Args:
      x: ``[n, t, heads, width]`` queries or keys.
      positions: ``[n, t]`` int32.
      rotary: the wavelengths.
    """
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies(rotary, x.shape[-1]), jnp.float32)[None, None]
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
