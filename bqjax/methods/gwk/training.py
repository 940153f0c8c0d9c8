"""Gradient-weighted k-means inside the training loop: what the paper does once an epoch, in every step.

The network runs on the reconstruction while the optimiser moves latent weights, to which gradients go straight through
(:func:`straight_through`). Each step refreshes the assignments and moves the codebook a little, to running
gradient-weighted means (:func:`gwk_update`). Late in training assignments are frozen, and the codebooks themselves can be
trained: the gradient of an entry is the sum of those of all blocks that point to it
(:func:`bqjax.kmeans.codebooks.codebook_gradients`). None of this is in the paper, whose weights are replaced by their
reconstruction after each epoch.

References:
  Bengio, Léonard, Courville 2013 (arXiv 1308.3432): the straight-through estimator.
  van den Oord, Vinyals, Kavukcuoglu 2017 (arXiv 1711.00937), appendix A.1: codebooks as running means.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace as with_fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.blocks import block_mask, float_blocks
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.assignment import weighted_sums
from bqjax.kmeans.codebooks import clustered_leaves, codebook_name, codebooks, with_codebooks
from bqjax.methods.gwk.assignment import assign, followed_lmbdas, unit_lmbdas
from bqjax.methods.gwk.config import Weighting, block_weights

__all__ = ["GWKState", "gwk_init", "gwk_update", "straight_through"]

# The first lmbda where bits are set, in the units of unit_lmbdas.
_FIRST_LMBDA = 0.3


@jax.custom_vjp
def _pass_through(latent: jax.Array, value: jax.Array) -> jax.Array:
    return value


def _forward(latent: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
    return value, None


def _backward(_: None, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return g, jnp.zeros_like(g)


_pass_through.defvjp(_forward, _backward)


def straight_through(latent: Any, tree: Any) -> Any:
    """The straight-through estimator: values of the clustered tree, whose gradients go to the latent weights.

    Args:
      latent: pytree of weights.
      tree: the same with clustered leaves; its other leaves are not looked at.

    Returns:
      ``latent`` with the values of every clustered leaf decoded: bit for bit what will be in the file.

    Example:
      >>> from bqjax.core.leaves import Clustered
      >>> leaf = Clustered(np.array([0, 1], np.uint8), np.float32([[1.0], [5.0]]), (2,), np.float32)
      >>> latent = {"w": jnp.array([0.8, 4.0])}
      >>> loss = lambda latent: (straight_through(latent, {"w": leaf})["w"] ** 2).sum()
      >>> loss(latent).item(), jax.grad(loss)(latent)["w"].tolist()
      (26.0, [2.0, 10.0])
    """
    leaves = named_leaves(latent)
    return replace(latent, {name: _pass_through(leaves[name], leaf.decode()) for name, leaf in clustered_leaves(tree).items()})


class GWKState(NamedTuple):
    """Clustering that runs along with training.

    Attributes:
      tree: the clustered tree.
      moments: running ``sum g w`` of every codebook entry, ``[k, d]`` by the names of :func:`bqjax.kmeans.codebooks.codebooks`.
      masses: running ``sum g``, ``[k, d]``: coordinates differ where blocks are padded or weighted by coordinate.
      lmbdas: Lagrangian weights of a bit, ``[]`` in squared distance, for the leaves whose bits are set.
    """

    tree: Any
    moments: dict[str, jax.Array]
    masses: dict[str, jax.Array]
    lmbdas: dict[str, jax.Array]


class _Sums(NamedTuple):
    moment: jax.Array  # [k, d]
    mass: jax.Array  # [k, d]
    worst: jax.Array  # [k, d] blocks of largest weighted error, in descending order
    worst_weight: jax.Array  # [k, d]
    error: jax.Array  # [k]


@functools.partial(jax.jit, static_argnums=3)
def _sums(params: Any, grads: Any, tree: Any, weighting: Weighting) -> dict[str, _Sums]:
    weights, gradients = named_leaves(params), named_leaves(grads)
    parts: dict[str, list[tuple[jax.Array, ...]]] = {}
    sizes: dict[str, int] = {}
    for name, leaf in clustered_leaves(tree).items():
        real = block_mask(leaf.shape, leaf.axis_order, leaf.d).astype(np.float32)
        x = float_blocks(jnp.asarray(weights[name]), leaf.axis_order, leaf.d)
        g = block_weights(gradients[name], leaf.d, weighting) * real
        error = (jnp.square(x - leaf.entries().astype(jnp.float32)[jnp.asarray(leaf.indices)]) * g).sum(1)
        parts.setdefault(codebook_name(name, leaf), []).append((x, g, jnp.asarray(leaf.indices).astype(jnp.int32), error))
        sizes[codebook_name(name, leaf)] = leaf.k
    found = {}
    for key, each in parts.items():
        x, g, indices, error = (jnp.concatenate(arrays) for arrays in zip(*each, strict=True))
        k = sizes[key]
        largest, at = lax.top_k(error, min(k, error.size))
        largest, at = (jnp.pad(a, (0, k - at.size)) for a in (largest, at))
        found[key] = _Sums(*weighted_sums(x, g, indices, k), x[at], g[at], largest)
    return found


def gwk_init(
    params: Any, grads: Any, tree: Any, *, weighting: Weighting = "block", bits: Mapping[str, float] | None = None
) -> GWKState:
    """The state to start from: a clustered tree, and the sums of its own assignment. Traceable.

    Args:
      params: the weights that were clustered.
      grads: gradients, or statistics of them, of the same structure.
      tree: the result of :func:`bqjax.methods.gwk.cluster.gwk_cluster`.
      weighting: see :class:`bqjax.methods.gwk.cluster.GWKConfig`.
      bits: see :func:`gwk_update`.

    Raises:
      ValueError: ``bits`` names a leaf that is not clustered, or more bits than its indices have.
    """
    sums = _sums(params, grads, tree, weighting)
    lmbdas = {}
    if bits:
        units, leaves = unit_lmbdas(params, tree), clustered_leaves(tree)
        for name, target in bits.items():
            if name not in leaves:
                raise ValueError(f"bits are set for {name!r}, which is not clustered; clustered are {', '.join(leaves)}")
            if not 0 < target <= math.log2(leaves[name].k):
                raise ValueError(
                    f"indices of {name!r} have {math.log2(leaves[name].k):g} bits, so that {target} cannot be their mean"
                )
            lmbdas[name] = _FIRST_LMBDA * units[codebook_name(name, leaves[name])]
    return GWKState(tree, {key: s.moment for key, s in sums.items()}, {key: s.mass for key, s in sums.items()}, lmbdas)


def gwk_update(
    state: GWKState,
    params: Any,
    grads: Any,
    *,
    decay: float = 0.95,
    frozen: Any = False,
    weighting: Weighting = "block",
    rate: float = 0.0,
    bits: Mapping[str, float] | None = None,
) -> GWKState:
    """One step of clustering: new assignments, and codebooks that follow the weights. Traceable.

    ``S <- decay S + (1 - decay) sum g w``, ``G <- decay G + (1 - decay) sum g``, ``c = S / G``. Each leaf's gradients have a
    mean of 1 in every step, so that steps count alike. An entry that no block points to moves to the block of the largest
    weighted error. Entries average over some ``1 / (1 - decay)`` steps: weights must move little in that time.

    Args:
      state: from :func:`gwk_init` or the last step.
      params: latent weights.
      grads: their gradients in this step, or statistics of them.
      decay: how slowly codebooks follow; 0 takes the means of this step alone.
      frozen: True keeps the assignments, and only the codebooks move. May be traced.
      weighting: see :class:`bqjax.methods.gwk.cluster.GWKConfig`.
      rate: what a bit of entropy-coded indices weighs, see :func:`bqjax.methods.gwk.assignment.assign`.
      bits: or what the mean entropy-coded index of some leaves shall take, in bits by the leaf's name; ``state.lmbdas`` then
        rises for a leaf whose indices take more, and falls for one whose indices take less.

    Returns:
      The new state; leaves of its tree that are not clustered are those of ``params``.

    Raises:
      ValueError: ``bits`` that :func:`gwk_init` was not given; whatever :func:`bqjax.methods.gwk.assignment.assign` refuses.
    """
    fresh = assign(params, state.tree, rate=rate, lmbdas=state.lmbdas)
    lmbdas = followed_lmbdas(state.lmbdas, bits, params, fresh) if bits else state.lmbdas
    new = clustered_leaves(fresh)
    old = clustered_leaves(state.tree)
    held = {name: with_fields(leaf, indices=jnp.where(frozen, old[name].indices, leaf.indices)) for name, leaf in new.items()}
    tree = replace(fresh, held)
    moments, masses, entries = {}, {}, {}
    for key, s in _sums(params, grads, tree, weighting).items():
        empty = (s.mass.max(1) <= 0) & jnp.logical_not(frozen)
        rank = jnp.maximum(jnp.cumsum(empty) - 1, 0)
        moved = (empty & (s.error[rank] > 0))[:, None]
        g = s.worst_weight[rank]
        mass = jnp.where(moved, g, decay * state.masses[key] + (1 - decay) * s.mass)
        moment = jnp.where(moved, g * s.worst[rank], decay * state.moments[key] + (1 - decay) * s.moment)
        moments[key], masses[key] = moment, mass
        entries[key] = jnp.where(mass > 1e-12, moment / jnp.where(mass > 1e-12, mass, 1), jnp.nan)
    for key, before in codebooks(tree).items():
        entries[key] = jnp.where(jnp.isnan(entries[key]), before, entries[key]).astype(before.dtype)
    return GWKState(with_codebooks(tree, entries), moments, masses, lmbdas)
