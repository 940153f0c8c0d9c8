"""Bin & Quant against the cost of their storage: what the coded file costs decides, beside what the network can bear.

Plain bins are cut by edges alone. Here a weight goes to the bin that is cheapest for it: half its importance times its
squared displacement, plus the lmbda of its index at the entropy of the indices. Unimportant weights drift into the
bins that are full already, where an index costs almost nothing, and important ones keep bins of their own, however
few they are: below one bit a weight without retraining. One lmbda for the whole network spends the bytes where they
help most.

References:
  Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Transactions on ASSP 37(1), 1989.
  Choi, El-Khamy, Lee, "Towards the limit of network quantization", ICLR 2017 (arXiv 1612.01543).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bqjax.core.leaves import Clustered, index_dtype, trim_codebook
from bqjax.core.tree import replace
from bqjax.kmeans.segments import segment_means
from bqjax.methods.bins.gaussian import BinStats, bin_indices
from bqjax.methods.bins.quantize import binned_groups

__all__ = ["bin_and_quant_ecsq"]


def bin_and_quant_ecsq(
    params: Any,
    stats: BinStats,
    importance: Mapping[str, Any],
    lmbda: Any,
    *,
    floor: float = 0.02,
    iterations: int = 20,
) -> Any:
    """Bins weighted by importance and by what their indices cost. Pure and traceable.

    Starting from the bins of ``stats``, alternates between the bins' values (means weighted by importance ``h``), the
    cost of an index (``-log2`` of its bin's share), and the assignment of each weight to the bin ``b`` of least
    ``h / 2 (w - v_b)^2 + lmbda * bits_b``. At lmbda 0 with equal importance this is k-means from these bins.

    Args:
      params: parameters, any pytree.
      stats: the first bins by leaf name, see :func:`bqjax.methods.bins.gaussian.gaussian_bins`. Leaves that share a group share
        the codebook and the costs.
      importance: by leaf name, non-negative arrays of the leaves' shapes, e.g. from
        :func:`bqjax.sensitivity.importance.output_importance`.
      lmbda: Lagrangian weight of a bit of indices, in units of ``importance * weight^2``.
      floor: share of a leaf's mean importance that is added to that of each weight: calibration data that never
        touches a weight is no proof that it is useless.
      iterations: of the alternation.

    Returns:
      The tree with a :class:`~bqjax.core.leaves.Clustered` leaf for every name in ``stats``. On concrete parameters, bins that
      no weight chose are dropped; under ``jit`` they stay in the codebook.

    Raises:
      ValueError: as :func:`bqjax.methods.bins.quantize.bin_and_quant`; a leaf without importance or with one of another shape;
        negative values of ``lmbda`` or ``floor``.
    """
    for what, value in (("lmbda", lmbda), ("floor", floor)):
        if not isinstance(value, jax.core.Tracer) and not value >= 0:
            raise ValueError(f"{what} must not be negative, got {value}")
    new: dict[str, Clustered] = {}
    for bins in binned_groups(params, stats):
        for name, leaf in bins.leaves.items():
            if name not in importance:
                raise ValueError(f"leaf {name!r} has no importance")
            if importance[name].shape != leaf.shape:
                raise ValueError(f"importance of {name!r} must have shape {leaf.shape}, got {importance[name].shape}")
            given = importance[name]
            if not isinstance(given, jax.core.Tracer) and not bool(jnp.all((given >= 0) & (given < jnp.inf))):
                raise ValueError(f"importance of {name!r} must be finite and not negative")
        h = jnp.concatenate([jnp.ravel(jnp.asarray(importance[name], bins.weights.dtype)) for name in bins.leaves])
        first = bin_indices(bins.weights, bins.edges)
        codebook, indices = _alternate(bins.weights, h, first, lmbda, floor, bins.edges.size + 1, iterations)
        if not isinstance(indices, jax.core.Tracer):
            codebook, indices = trim_codebook(codebook, indices)
        new.update(bins.clustered(codebook, indices))
    return replace(params, new)


@partial(jax.jit, static_argnames=("k", "iterations"))
def _alternate(
    w: jax.Array, h: jax.Array, first: jax.Array, lmbda: Any, floor: Any, k: int, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """Codebook ``[k]`` and indices ``[n]``."""
    # In units of the leaf's mean importance, so that no product underflows.
    scale = jnp.mean(h)
    scale = jnp.where(scale > 0, scale, 1.0)
    h = h / scale + floor
    bit = jnp.asarray(lmbda, w.dtype) / scale

    def values_of(index: jax.Array) -> jax.Array:
        return segment_means(w, index, k, h)

    def assign(_: Any, index: jax.Array) -> jax.Array:
        values = values_of(index)
        share = jnp.stack([jnp.mean(index == b, dtype=w.dtype) for b in range(k)])
        bits = jnp.where(share > 0, -jnp.log2(jnp.where(share > 0, share, 1.0)), jnp.inf)
        # A running minimum over the bins: the [n, k] matrix of costs never exists.
        best, least = jnp.zeros_like(index), jnp.full_like(w, jnp.inf)
        for b in range(k):
            # An empty bin costs infinitely much; at lmbda 0 that would be 0 * inf.
            cost = h / 2 * jnp.square(w - values[b]) + jnp.where(share[b] > 0, bit * bits[b], jnp.inf)
            best, least = jnp.where(cost < least, b, best).astype(index.dtype), jnp.minimum(cost, least)
        return best

    index = jax.lax.fori_loop(0, iterations, assign, first.astype(index_dtype(k)))
    return values_of(index), index
