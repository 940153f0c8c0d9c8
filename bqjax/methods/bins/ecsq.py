"""Entropy-constrained scalar quantization (ECSQ) of a network: Bin & Quant against what the coded file costs.

Plain bins are cut by edges alone. Here a weight goes to the bin of the least rate-distortion Lagrangian: half its importance times
its squared displacement, plus ``lmbda`` times the bits of its index at the entropy of the indices. Unimportant weights drift into
the bins that are full already, where an index costs almost nothing, and important ones keep bins of their own, however few they
are: below one bit a weight without retraining. The same ``lmbda`` for the whole network spends the bytes where they help most.
:mod:`bqjax.kmeans.ecvq` is the solver.

References:
  Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Transactions on ASSP 37(1), 1989.
  Choi, El-Khamy, Lee, "Towards the limit of network quantization", ICLR 2017 (arXiv 1612.01543).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.gather import end_to_end, gathered
from bqjax.core.leaves import Clustered, index_dtype, trim_codebook
from bqjax.core.tree import replace
from bqjax.kmeans.ecvq import ecvq_solve
from bqjax.kmeans.fixed_levels import pruned
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
    """Entropy-constrained scalar quantization, from the bins of ``stats``. Pure and traceable.

    Alternates between the bins' values (means weighted by importance ``h``), the bits of an index (``-log2`` of its bin's share),
    and the assignment of each weight to the bin ``b`` of least ``h / 2 (w - v_b)^2 + lmbda * bits_b``. With ``lmbda = 0`` and
    equal importance this is k-means from these bins.

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
      no weight chose are dropped; under ``jit`` they stay in the codebook. Zeros of concrete pruned leaves, of which 5 % or more of
      the weights are zero, stay zeros.

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
        # The weights first: the importance goes where they are.
        _, *placed = gathered([bins.weights, *(importance[name] for name in bins.leaves)])
        h = end_to_end(placed, bins.weights.dtype)
        first = bin_indices(bins.weights, bins.edges)
        start = jnp.zeros(bins.edges.size + 1, h.dtype)
        solved = ecvq_solve(bins.weights, h, start, first, lmbda, floor=floor, iterations=iterations)
        new.update(bins.clustered(*trim_codebook(*_zeros_kept(bins.weights, *solved))))
    return replace(params, new)


def _zeros_kept(weights: jax.Array, codebook: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zeros of pruned leaves in a bin of value zero: the one nearest to it, or one more where that is not theirs."""
    if isinstance(codebook, jax.core.Tracer) or (kept := pruned(weights)) is None:
        return codebook, indices
    entries, chosen = np.array(codebook), np.array(indices).astype(np.int64)
    nearest = int(np.abs(entries).argmin())
    held = chosen[~kept]
    if 2 * np.count_nonzero(held == nearest) > held.size > np.count_nonzero(chosen == nearest) / 2:
        entries[nearest] = 0
    else:
        nearest, entries = entries.size, np.append(entries, np.zeros(1, entries.dtype))
    chosen[~kept] = nearest
    return jnp.asarray(entries), jnp.asarray(chosen, index_dtype(entries.size))
