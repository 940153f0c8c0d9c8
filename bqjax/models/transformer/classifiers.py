"""Transformers that classify: ViT for images and KWT for spoken words, by what the last layer makes of a token of its own.

References:
  Dosovitskiy et al. 2021, "An image is worth 16x16 words" (arXiv 2010.11929).
  Berg, O'Connor, Cruz 2021, "Keyword Transformer" (arXiv 2104.00769); its layers have norms behind the sums.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bqjax.models.transformer.attention import places_of
from bqjax.models.transformer.blocks import Stack
from bqjax.models.transformer.layers import Norm
from bqjax.models.transformer.settings import TransformerConfig

__all__ = ["KWT", "ViT"]


class _Classifier(nnx.Module):
    """A class token before a sequence, learned positions, layers, and a head on what becomes of the token."""

    def __init__(self, config: TransformerConfig, length: int, classes: int, *, scan: bool, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.token = nnx.Param(init(rngs.params(), (1, 1, config.width)))
        self.positions = nnx.Param(init(rngs.params(), (1, 1 + length, config.width)))
        self.layers = Stack(config, scan=scan, rngs=rngs)
        self.norm = Norm(config.width, config, rngs=rngs) if config.pre_norm else None
        self.head = nnx.Linear(config.width, classes, rngs=rngs)

    def classified(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of a sequence ``[n, length, width]``."""
        n, _, width = x.shape
        x = jnp.concatenate([jnp.broadcast_to(self.token[...], (n, 1, width)), x], axis=1) + self.positions[...]
        x = self.layers(x, places_of(jnp.ones(x.shape[:2], jnp.int32), causal=False))[:, 0]
        return self.head(x if self.norm is None else self.norm(x))


class KWT(_Classifier):
    """The keyword-spotting transformer: a sequence of MFCC frames.

    Its parameters are ``input``, ``token``, ``positions``, those of ``layers``
    (:class:`~bqjax.models.transformer.blocks.Stack`), and ``head``.

    Args:
      config: of the layers; None is KWT-1: 12 of width 64 with one head.
      frames, features: of a clip.
      classes: number of labels.
      scan: whether the layers' parameters are stacked.
      rngs: random numbers for the initial weights.

    Example:
      >>> nnx.eval_shape(lambda: KWT(rngs=nnx.Rngs(0))(jnp.zeros((2, 98, 40)))).shape
      (2, 12)
    """

    def __init__(
        self,
        config: TransformerConfig | None = None,
        *,
        frames: int = 98,
        features: int = 40,
        classes: int = 12,
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        config = config or TransformerConfig(
            width=64, layers=12, heads=1, hidden=256, eps=1e-6, activation="gelu_new", attention_bias=False
        )
        self.input = nnx.Linear(features, config.width, rngs=rngs)
        super().__init__(config, frames, classes, scan=scan, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of MFCCs ``[n, frames, features]``."""
        return self.classified(self.input(x))


class ViT(_Classifier):
    """The vision transformer: a sequence of square patches.

    Its parameters are ``patches`` (a convolution), ``token``, ``positions``, those of ``layers``
    (:class:`~bqjax.models.transformer.blocks.Stack`), ``norm`` and ``head``.

    Args:
      config: of the layers, with ``pre_norm``.
      size: of an image, pixels.
      patch: of a patch, pixels; divides ``size``.
      channels: of an image.
      classes: number of labels.
      scan: whether the layers' parameters are stacked.
      rngs: random numbers for the initial weights.

    Raises:
      ValueError: patches do not divide an image.

    Example:
      >>> config = TransformerConfig(width=8, layers=2, heads=2, hidden=16, pre_norm=True)
      >>> nnx.eval_shape(lambda: ViT(config, size=8, patch=4, classes=10, rngs=nnx.Rngs(0))(jnp.zeros((2, 8, 8, 3)))).shape
      (2, 10)
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        size: int,
        patch: int,
        classes: int,
        channels: int = 3,
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        if patch < 1 or size % patch:
            raise ValueError(f"images of {size} pixels have no whole patches of {patch}")
        self.patches = nnx.Conv(channels, config.width, (patch, patch), strides=patch, padding="VALID", rngs=rngs)
        super().__init__(config, (size // patch) ** 2, classes, scan=scan, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of images ``[n, size, size, channels]``."""
        x = self.patches(x)
        return self.classified(x.reshape(x.shape[0], -1, x.shape[-1]))
