"""Bin & Quant, scalar quantization by bins: a leaf's weights are put into bins, and every bin becomes one codebook entry.

:func:`gaussian_bins` places bins by the normal distribution alone, with no data; :func:`bqjax.methods.bins.search_bins`
goes on to split the bins that the network cannot bear to lose. Both give :data:`BinStats`, which
:func:`bin_and_quant`, a pure and jittable function, turns into a compressed tree.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), sections III-A and III-B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.gather import beside, end_to_end
from bqjax.core.leaves import Clustered, round_to, trim_codebook
from bqjax.core.rules import Rule, check_compressible, grouped
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.segments import segment_means
from bqjax.methods.bins.gaussian import BinStats, bin_indices, compute_dtype

__all__ = ["bin_and_quant"]


def _differ(a: Any, b: Any) -> bool:
    """Whether two sets of edges differ, as far as can be told while tracing."""
    if a.shape != b.shape:
        return True
    return not any(isinstance(x, jax.core.Tracer) for x in (a, b)) and not np.array_equal(a, b)


def bin_and_quant(params: Any, stats: BinStats) -> Any:
    """Scalar quantization: replaces the weights of every bin by their mean. Pure and traceable; measures nothing.

    Args:
      params: parameters, any pytree.
      stats: bins by leaf name, from :func:`gaussian_bins`, :func:`bqjax.methods.bins.search_bins` or made by hand.

    Returns:
      The same tree with a :class:`~bqjax.core.leaves.Clustered` leaf for every name in ``stats``: codebook ``[n_bins, 1]`` in
      the leaf's dtype, index ``[n]``. Bins that hold no weight get the value 0, which no index points to.

    Raises:
      ValueError: a name that ``params`` does not have; leaves of one group with different edges; NaN or infinite
        weights where they are concrete.
    """
    new: dict[str, Clustered] = {}
    for bins in binned_groups(params, stats):
        indices = bin_indices(bins.weights, bins.edges)
        new.update(bins.clustered(segment_means(bins.weights, indices, bins.edges.size + 1), indices))
    return replace(params, new)


class BinnedGroup(NamedTuple):
    """Leaves that share bins, with their weights end to end.

    Attributes:
      group: its name, or None for a leaf by itself.
      leaves: by name.
      edges: of the bins.
      weights: ``[n]`` in the compute dtype.
    """

    group: str | None
    leaves: dict[str, jax.Array]
    edges: jax.Array | np.ndarray
    weights: jax.Array

    def clustered(self, codebook: jax.Array, indices: jax.Array) -> dict[str, Clustered]:
        """Compressed leaves by name from a codebook ``[k]`` and indices ``[n]`` for all the weights."""
        new, start = {}, 0
        dtypes = {np.dtype(leaf.dtype) for leaf in self.leaves.values()}
        if any(jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes):
            if len(dtypes) > 1:
                raise ValueError(f"group {self.group!r} mixes dtypes {sorted(map(str, dtypes))}: integer leaves share one only")
            codebook = round_to(codebook, dtypes.pop())
            if not isinstance(indices, jax.core.Tracer):  # rounding may have made entries equal
                codebook, indices = map(jnp.asarray, trim_codebook(codebook, indices))
        for name, leaf in self.leaves.items():
            part = beside(leaf, indices[start : start + leaf.size])
            entries = beside(leaf, codebook.astype(leaf.dtype)[:, None])
            new[name] = Clustered(part, entries, leaf.shape, leaf.dtype, group=self.group)
            start += leaf.size
        return new


def binned_groups(params: Any, stats: BinStats) -> Iterator[BinnedGroup]:
    """The leaves that ``stats`` speaks of, all checked, then put together group by group, so that one group's copy is held at a
    time; see :func:`bin_and_quant` for the errors."""
    leaves = named_leaves(params)
    replace(params, dict.fromkeys(stats))  # names the leaf that does not exist
    for name in stats:
        check_compressible(name, leaves[name])
        check_finite(name, leaves[name])
    groups = grouped({name: Rule[None](name, group=bins.group) for name, bins in stats.items()})
    for group, names in groups:
        edges = stats[names[0]].edges
        if any(_differ(stats[name].edges, edges) for name in names):
            raise ValueError(f"group {group!r}: its leaves {names} have different edges")
    for group, names in groups:
        dtype = compute_dtype(jnp.result_type(*[leaves[name].dtype for name in names]))
        weights = end_to_end([leaves[name] for name in names], dtype)
        yield BinnedGroup(group, {name: leaves[name] for name in names}, stats[names[0]].edges, weights)
