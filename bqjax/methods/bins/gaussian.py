"""Gaussian bins, scalar quantizers with edges at equal shares of a normal distribution; which bin each weight falls into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import index_dtype
from bqjax.core.rules import Rule, group_setting, grouped, select
from bqjax.core.tree import check_finite, named_leaves
from bqjax.kmeans.fixed_levels import fixed_levels, loose
from bqjax.kmeans.segments import concrete, exponent_of, times_power

__all__ = ["BinConfig", "BinStats", "Bins", "bin_indices", "gaussian_bins", "gaussian_edges", "occupied"]

_PIECE = 2**20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bins:
    """The bins of one leaf.

    Attributes:
      edges: ``[n_bins - 1]``, strictly ascending; bin ``i`` holds the weights with ``edges[i-1] <= w < edges[i]``,
        the outer bins are unbounded.
      group: leaves of one group have the same edges and share one codebook, the bin means over all of them.
    """

    edges: jax.Array | np.ndarray
    group: str | None = field(default=None, metadata={"static": True})


BinStats = Mapping[str, Bins]
"""Bins by leaf name. A pytree, so that it can be an argument of a jitted function."""


@dataclass(frozen=True, kw_only=True)
class BinConfig:
    """Where Gaussian bins are placed: ``edges_i = mean + sigma * Phi^-1(i / n_bins)``, ``i = 1 .. n_bins - 1``.

    Attributes:
      n_bins: number of bins.
      sigma: standard deviation in the units of the weights; None takes the leaf's own.
      sigma_scale: factor on ``sigma``. Above 1 the outer bins hold fewer weights and the middle ones more, which
        lowers the entropy of the indices and widens the covered range.
      mean: centre; None takes the leaf's mean.
    """

    n_bins: int = 8
    sigma: float | None = None
    sigma_scale: float = 1.0
    mean: float | None = None

    def __post_init__(self) -> None:
        if self.n_bins < 1:
            raise ValueError(f"n_bins must be at least 1, got {self.n_bins}")
        for what, value in (("sigma", self.sigma), ("sigma_scale", self.sigma_scale)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{what} must be positive and finite, got {value}")
        if self.mean is not None and not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")


def gaussian_edges(n_bins: int, mean: float = 0.0, sigma: float = 1.0) -> np.ndarray:
    """Edges of bins that a normal distribution would fill equally, float64 ``[n_bins - 1]``.

    Example:
      >>> gaussian_edges(4, sigma=2.0).round(3).tolist()
      [-1.349, 0.0, 1.349]
    """
    normal = NormalDist()
    return np.array([mean + sigma * normal.inv_cdf(i / n_bins) for i in range(1, n_bins)])


def compute_dtype(dtype: Any) -> np.dtype:
    """The dtype in which weights of ``dtype`` are compared and averaged: at least float32."""
    return np.dtype(jnp.promote_types(dtype, jnp.float32))


def bin_indices(weights: jax.Array | np.ndarray, edges: jax.Array | np.ndarray) -> jax.Array:
    """Index of the bin of every weight, flat ``[n]`` in the smallest unsigned type. Traceable."""
    weights, edges = jnp.asarray(weights), jnp.asarray(edges)
    if edges.size and concrete(weights) and concrete(edges) and (exponent := exponent_of(edges)):
        # Edges may be so small that XLA takes them for zeros.
        weights = times_power(weights.astype(compute_dtype(weights.dtype)), -exponent)
        edges = times_power(edges.astype(weights.dtype), -exponent)
    return _bin_indices(weights, edges)


@jax.jit  # as one, so that no copy of the weights and no index of four bytes is stored in between
def _bin_indices(weights: jax.Array, edges: jax.Array) -> jax.Array:
    flat = weights.reshape(-1).astype(compute_dtype(weights.dtype))
    edges = edges.astype(flat.dtype)
    # Comparing with every edge fuses into one pass over the weights; from some 64 edges on bisection is faster.
    method = "compare_all" if edges.size <= 64 else "scan_unrolled"
    return jnp.searchsorted(edges, flat, side="right", method=method).astype(index_dtype(edges.size + 1))


def occupied(edges: np.ndarray, values: Sequence[np.ndarray]) -> np.ndarray:
    """The edges that are left when empty bins vanish.

    Args:
      edges: ``[n_bins - 1]`` ascending, in the dtype of the comparison.
      values: concrete weight arrays, taken together.

    Returns:
      Ascending edges between bins that each hold at least one weight.
    """
    counts = np.zeros(len(edges) + 1, np.int64)
    # In pieces, so that the copies stay small.
    for piece in (p for v in values for p in np.split(np.asarray(v).reshape(-1), range(_PIECE, np.size(v), _PIECE))):
        counts += np.bincount(np.asarray(bin_indices(piece, edges)), minlength=len(counts))
    full = np.flatnonzero(counts)
    return edges[full[1:] - 1]


def moments(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation over all entries of some arrays, in float64."""
    n = sum(v.size for v in values)
    mean = sum(float(v.sum(dtype=np.float64)) for v in values) / n
    # In float64, whatever the scale of the weights, and in pieces, so that the copies stay small.
    pieces = (p for v in values for p in np.split(v.reshape(-1), range(_PIECE, v.size, _PIECE)))
    variance = sum(float(np.square(np.subtract(p, mean, dtype=np.float64)).sum()) for p in pieces) / n
    return mean, math.sqrt(variance)


def start_edges(values: Sequence[np.ndarray], config: BinConfig) -> np.ndarray:
    """Gaussian edges for concrete weights, without those that bound an empty bin or coincide."""
    mean, sigma = moments(values)
    mean = mean if config.mean is None else config.mean
    sigma = config.sigma_scale * (sigma if config.sigma is None else config.sigma)
    edges = np.unique(gaussian_edges(config.n_bins, mean, sigma).astype(values[0].dtype))
    return occupied(edges, values)


def fixed_edges(values: Sequence[np.ndarray], config: BinConfig) -> np.ndarray | None:
    """Gaussian edges with bins for fixed levels alone; None where no level is fixed or there are too few bins.

    The sentinels' bins are cut off at both ends, that of zero is ``[0, smallest normal number)``, and the others are placed by the
    moments of the weights that stand at no level. There are ``n_bins`` in all, or one less.
    """
    levels = fixed_levels(values)
    sentinels = levels[levels != 0]
    n_bins = config.n_bins - sentinels.size
    with_zero = sentinels.size < levels.size
    rest = [v[loose(v, levels)] for v in values]
    if not levels.size or n_bins < (3 if with_zero else 1) or not any(v.size for v in rest):
        return None
    mean, sigma = moments(rest)
    mean = mean if config.mean is None else config.mean
    sigma = config.sigma_scale * (sigma if config.sigma is None else config.sigma)
    # An even number of bins for the rest has an edge near zero, which the two edges around zero replace.
    inner = gaussian_edges((n_bins - 1) // 2 * 2 if with_zero else n_bins, mean, sigma)
    if with_zero:
        inner = np.append(np.delete(inner, np.abs(inner).argmin()), [0.0, float(np.finfo(values[0].dtype).tiny)])
    low, high = (np.sort(sentinels[sign * sentinels > 0].astype(np.float64)) for sign in (-1, 1))
    # A bin reaches from its own value up: the last one below ends halfway to zero, far from all other weights.
    outer = [*low[1:], *(low[-1:] / 2), *(high[:1] / 2), *high[1:]]
    edges = np.unique(np.append(inner, outer).astype(values[0].dtype))
    return occupied(edges, values)


def host_weights(params: Any, names: Sequence[str]) -> list[np.ndarray]:
    """The named leaves as concrete, finite NumPy arrays in their compute dtype."""
    leaves = named_leaves(params)
    for name in names:
        check_finite(name, leaves[name])
    dtype = compute_dtype(jnp.result_type(*[leaves[name].dtype for name in names]))
    return [np.asarray(leaves[name]).astype(dtype, copy=False) for name in names]


def gaussian_bins(
    params: Any, n_bins: int | BinConfig = 8, rules: Sequence[Rule[int | BinConfig]] | None = None
) -> dict[str, Bins]:
    """Bins by the inverse normal distribution, from the weights alone (III-A).

    Args:
      params: parameters, any pytree, concrete.
      n_bins: number of bins, or a :class:`BinConfig`.
      rules: which leaves; a rule's ``setting`` is the ``n_bins`` of its leaves. See :func:`bqjax.core.rules.select`.

    Returns:
      Stats for :func:`bin_and_quant`. Bins that hold no weight are dropped, so a leaf never has more bins than
      distinct values, and a constant leaf has one. Zeros of pruned leaves and sentinels have bins of their own, out of the
      ``n_bins`` (:func:`bqjax.kmeans.fixed_levels.fixed_levels`).

    Raises:
      ValueError: fewer than one bin; NaN or infinite weights; a rule that matches nothing or does not fit.

    Example:
      >>> import jax
      >>> from bqjax.methods.bins.quantize import bin_and_quant
      >>> params = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "b": jnp.zeros(64)}
      >>> compressed = bin_and_quant(params, gaussian_bins(params, 4))
      >>> compressed["w"].k, type(compressed["b"]).__name__
      (4, 'ArrayImpl')
    """
    taken = select(params, rules).taken
    stats: dict[str, Bins] = {}
    for group, names in grouped(taken):
        setting = group_setting(group, names, taken)
        setting = n_bins if setting is None else setting
        config = setting if isinstance(setting, BinConfig) else BinConfig(n_bins=setting)
        weights = host_weights(params, names)
        edges = fixed_edges(weights, config)
        edges = start_edges(weights, config) if edges is None else edges
        stats.update({name: Bins(edges, group) for name in names})
    return stats
