"""Assignment of blocks to codebook entries: to the nearest, or entropy-constrained, where bits of indices count too.

Indices are entropy-coded, so that an entry that is used often is short, ``l_j = -log2 p_j`` bits, where ``p_j`` is the share of
all blocks of its codebook (leaves of a group together) that have entry ``j``. With a Lagrangian weight ``lmbda`` of a bit, in
squared distance, each block takes the entry that minimises

    ``|x - c_j|^2 + lmbda l_j``.

References:
  Chou, Lookabaugh, Gray 1989, "Entropy-constrained vector quantization", IEEE Trans. ASSP 37.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace as with_fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import block_mask, float_blocks
from bqjax.core.leaves import Clustered
from bqjax.core.map_leaves import by_shape
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.assignment import nearest_block
from bqjax.kmeans.codebooks import clustered_leaves, codebook_name
from bqjax.kmeans.ecvq import ideal_code_lengths

__all__ = ["assign", "code_lengths", "followed_lmbdas", "index_bits", "unit_lmbdas"]

# A mean index that is one bit too long raises lmbda by this share a step; at most by the second number.
_GAIN, _MOST = 0.05, 0.1
# Multiples of a codebook's unit (see unit_lmbdas) between which lmbda stays.
_RANGE = (1e-3, 4.0)


def code_lengths(tree: Any) -> dict[str, jax.Array]:
    """Ideal code lengths: bits of each index to a codebook, ``[k]`` by the names of :func:`bqjax.kmeans.codebooks.codebooks`.

    Traceable. An entry that nothing uses counts as used by half a block.
    """
    counts: dict[str, jax.Array] = {}
    for name, leaf in clustered_leaves(tree).items():
        key = codebook_name(name, leaf)
        counts[key] = counts.get(key, jnp.zeros(leaf.k, jnp.float32)).at[jnp.asarray(leaf.indices)].add(1)
    return {key: ideal_code_lengths(c, unused=0.5) for key, c in counts.items()}


def index_bits(tree: Any) -> dict[str, jax.Array]:
    """Mean bits of a leaf's indices in the code of its codebook, ``[]`` by the leaf's name. Traceable."""
    lengths = code_lengths(tree)
    leaves = clustered_leaves(tree).items()
    return {name: lengths[codebook_name(name, leaf)][jnp.asarray(leaf.indices)].mean() for name, leaf in leaves}


def unit_lmbdas(params: Any, tree: Any) -> dict[str, jax.Array]:
    """The slope of the high-rate distortion curve, ``(2 ln 2 / d) E`` a bit, by the names of codebooks. Traceable.

    ``E`` is the mean squared distance of a block from its entry. By ``E ~ 2^(-2 bits / d)`` this is what one more bit takes from
    it, and so the unit in which ``lmbda`` is given.

    Args:
      params: weights, of the names and shapes that ``tree`` stands for.
      tree: the clustered tree.
    """
    weights, sums = named_leaves(params), dict[str, tuple[Any, int]]()
    leaves = clustered_leaves(tree)
    for name, leaf in leaves.items():
        key = codebook_name(name, leaf)
        error, blocks = sums.get(key, (0.0, 0))
        sums[key] = error + _error(jnp.asarray(weights[name]), leaf), blocks + np.size(leaf.indices)
    d = {codebook_name(name, leaf): leaf.d for name, leaf in leaves.items()}
    return {key: (2 * math.log(2) / d[key]) * error / blocks for key, (error, blocks) in sums.items()}


@jax.jit
def _error(weight: jax.Array, leaf: Clustered) -> jax.Array:
    real = block_mask(leaf.shape, leaf.axis_order, leaf.d)
    x, entries = float_blocks(weight, leaf.axis_order, leaf.d), leaf.entries().astype(jnp.float32)
    return jnp.where(real, jnp.square(x - entries[jnp.asarray(leaf.indices)]), 0).sum()


def followed_lmbdas(lmbdas: Mapping[str, Any], bits: Mapping[str, float], params: Any, tree: Any) -> dict[str, jax.Array]:
    """One step of rate control: ``lmbda`` of each leaf moved towards that at which its indices take so many bits. Traceable.

    Args:
      lmbdas: Lagrangian weights of a bit, ``[]`` by leaf, in squared distance.
      bits: what the mean index of each leaf shall take.
      params, tree: weights, and the clustered tree that was assigned at ``lmbdas``.

    Raises:
      ValueError: ``lmbdas`` lacks a leaf whose bits are set.
    """
    if lacking := [name for name in bits if name not in lmbdas]:
        raise ValueError(f"bits are set for {lacking[0]!r}, of which the state has no lmbda: give gwk_init the same bits")
    now, units, new = index_bits(tree), unit_lmbdas(params, tree), {}
    leaves = clustered_leaves(tree)
    for name, target in bits.items():
        unit = units[codebook_name(name, leaves[name])]
        step = jnp.exp(jnp.clip(_GAIN * (now[name] - target), -_MOST, _MOST))
        new[name] = jnp.clip(lmbdas[name] * step, _RANGE[0] * unit, _RANGE[1] * unit)
    return new


def assign(params: Any, tree: Any, *, rate: float = 0.0, lmbdas: Mapping[str, Any] | None = None) -> Any:
    """Assigns every block to the nearest entry of its codebook, or to the one of least distance and bits. Traceable.

    With a ``rate``, assignment is entropy-constrained: a bit weighs ``rate`` times what it buys where a codebook is fine
    (:func:`unit_lmbdas`). Small rates save bits at almost no error, whose change is of second order.

    Args:
      params: weights, of the names and shapes that ``tree`` stands for.
      tree: a tree whose :class:`bqjax.core.leaves.Clustered` leaves have the codebooks.
      rate: weight of a bit, at least 0.
      lmbdas: or the Lagrangian weight of a bit, ``[]`` in squared distance, for the leaves named.

    Returns:
      ``tree`` with new indices; leaves that are not clustered are those of ``params``.

    Raises:
      ValueError: ``params`` lacks a leaf, or has one of another shape; ``rate`` is negative or not finite.

    Example:
      >>> tree = {"w": Clustered(np.array([0, 0, 1], np.uint8), np.float32([[0.0], [1.0]]), (3,), np.float32)}
      >>> assign({"w": np.float32([0.0, 0.9, 1.0])}, tree)["w"].indices.tolist()
      [0, 1, 1]
    """
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"the rate must be finite and at least 0, got {rate}")
    weights, leaves, lmbdas = named_leaves(params), clustered_leaves(tree), lmbdas or {}
    for name, leaf in leaves.items():
        if name not in weights or np.shape(weights[name]) != leaf.shape:
            found = np.shape(weights[name]) if name in weights else "nothing"
            raise ValueError(f"clustered leaf {name!r} stands for weights of shape {leaf.shape}, the parameters have {found}")
    lengths = code_lengths(tree) if rate or lmbdas else {}
    units = unit_lmbdas(params, tree) if rate else {}
    arguments = {}
    for name, leaf in leaves.items():
        key = codebook_name(name, leaf)
        real = block_mask(leaf.shape, leaf.axis_order, leaf.d)
        a_bit = lmbdas[name] if name in lmbdas else rate * units[key] if rate else None
        arguments[name] = (
            float_blocks(jnp.asarray(weights[name]), leaf.axis_order, leaf.d),
            leaf.entries().astype(jnp.float32),
            None if real.all() else jnp.asarray(real),
            None if a_bit is None else a_bit * lengths[key],
        )
    indices = by_shape(_nearest, arguments)
    return replace(params, {name: with_fields(leaves[name], indices=index) for name, index in indices.items()})


def _nearest(x: jax.Array, codebook: jax.Array, mask: jax.Array | None, costs: jax.Array | None) -> jax.Array:
    return nearest_block(x, codebook, mask=mask, costs=costs)
