"""What GWK clusters and by which weights: blocks of a leaf, sizes of gradients, and what it all costs in bits.

Reference:
  Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), section III-D.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import block_mask, output_first, to_blocks
from bqjax.core.leaves import Clustered
from bqjax.core.tree import named_leaves

__all__ = ["GWKConfig", "Weighting", "bits_per_weight", "block_size", "block_weights"]

Weighting = Literal["block", "coordinate", "none"]


@dataclass(frozen=True, kw_only=True)
class GWKConfig:
    """How leaves are clustered; the paper writes ``cv/pw/bits``, as in 6/4/5.

    Attributes:
      bits: bits of an index; a codebook has ``2^bits`` entries.
      cv: weights of a block in convolutions with an extent (3x3, 5x1, ...).
      pw: weights of a block in pointwise convolutions and dense layers.
      weighting: ``"block"`` weighs a block by the mean of its ``|grad|`` (the paper); ``"coordinate"`` weighs every entry by
        its own, in means and in distances (with squared gradients in place of gradients: diagonal Fisher); ``"none"``
        ignores gradients (plain product quantization).
      iterations: most iterations of k-means.
    """

    bits: int = 5
    cv: int = 6
    pw: int = 4
    weighting: Weighting = "block"
    iterations: int = 25

    def __post_init__(self) -> None:
        for what, low, high in (("bits", 0, 16), ("cv", 1, None), ("pw", 1, None), ("iterations", 1, None)):
            value = getattr(self, what)
            try:
                fits = low <= operator.index(value) and (high is None or value <= high)
            except TypeError:
                fits = False
            if not fits:
                raise ValueError(
                    f"{what} must be an integer of at least {low}{f' and at most {high}' if high else ''}, got {value!r}"
                )
        if self.weighting not in ("block", "coordinate", "none"):
            raise ValueError(f'weighting must be "block", "coordinate" or "none", got {self.weighting!r}')


def block_size(shape: Sequence[int], config: GWKConfig) -> int:
    """``config.cv`` for a convolution kernel ``[*spatial, cin, cout]`` with an extent, else ``config.pw``.

    >>> block_size((3, 3, 16, 16), GWKConfig()), block_size((1, 1, 16, 16), GWKConfig()), block_size((64, 10), GWKConfig())
    (6, 4, 4)
    """
    return config.cv if math.prod(shape[:-2]) > 1 else config.pw


def block_weights(grad: Any, d: int, weighting: Weighting = "block") -> jax.Array:
    """Weights of the blocks of a leaf, from its gradient. Traceable.

    Args:
      grad: the gradient, of the leaf's shape; only magnitudes count.
      d: weights of a block.
      weighting: see :class:`GWKConfig`.

    Returns:
      ``[n_blocks, d]`` float32 for ``"coordinate"``, else ``[n_blocks, 1]`` with a mean of 1: the mean of ``|grad|`` over
      the real entries of each block. Where the gradient is zero everywhere all weights are 1. Entries that are padding have
      weight 0 in the former.

    Example:
      >>> block_weights(np.float32([[1], [3], [0], [-4]]), 2).tolist()
      [[1.0], [1.0]]
    """
    return _block_weights(jnp.asarray(grad), d, weighting)


# Compiled as a whole: one by one, its operations would be compiled for every shape of a network.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _block_weights(grad: jax.Array, d: int, weighting: Weighting) -> jax.Array:
    order = output_first(grad.ndim)
    real = block_mask(grad.shape, order, d)
    if weighting == "none":
        return jnp.ones((real.shape[0], 1), jnp.float32)
    size = to_blocks(jnp.abs(grad).astype(jnp.float32), order, d)
    if weighting == "block":
        size, real = size.sum(1, keepdims=True) / real.sum(1, keepdims=True).astype(np.float32), np.ones_like(real[:, :1])
    # Against the largest first, so that gradients of 1e-30 do not add up to nothing.
    largest = size.max()
    scaled = size / jnp.where(largest > 0, largest, 1)
    return jnp.where(largest > 0, scaled * (real.sum() / jnp.maximum(scaled.sum(), 1)), real.astype(np.float32))


def bits_per_weight(tree: Any, codebook_bits: int = 8) -> float:
    """Bits of indices and codebooks of all clustered leaves together, per weight of theirs (the paper's formula).

    Args:
      tree: a compressed tree; its other leaves do not count.
      codebook_bits: bits of a number of a codebook; 8, "the weight precision", in the paper.

    Raises:
      ValueError: there is no clustered leaf.

    Example:
      >>> leaf = Clustered(np.zeros(384, np.uint8), np.zeros((32, 6), np.float32), (3, 3, 16, 16), np.float32, (3, 2, 0, 1))
      >>> bits_per_weight({"kernel": leaf}) == (384 * 5 + 32 * 6 * 8) / 2304
      True
    """
    total, weights, groups = 0, 0, set()
    for leaf in named_leaves(tree).values():
        if isinstance(leaf, Clustered):
            weights += leaf.size
            total += leaf.indices.size * (leaf.k - 1).bit_length()
            if leaf.group is None or leaf.group not in groups:
                total += leaf.codebook.size * codebook_bits
            groups.add(leaf.group)
    if not weights:
        raise ValueError("no leaf of the tree is clustered")
    return total / weights
