"""Weight sharing by k-means, the quantisation stage of Deep Compression.

Each chosen leaf keeps ``k`` values, those that stand for its weights with the least squared error, and for each weight
the number of its value. There is no data, no gradient and no retraining: the baseline for methods that measure
sensitivity first.

References:
  Han, Mao and Dally, "Deep Compression: Compressing deep neural networks with pruning, trained quantization and Huffman
  coding", ICLR 2016 (arXiv:1510.00149), section 3.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax import kmeans
from bqjax.leaves import Clustered, round_to, trim_codebook
from bqjax.tree import Rule, check_finite, named_leaves, replace, select

__all__ = ["kmeans_share"]


def kmeans_share(params: Any, k: int = 16, rules: Sequence[Rule[int]] | None = None) -> Any:
    """Replaces the weights of each chosen leaf by their ``k`` best values in the sense of squared error.

    Leaves with at most ``k`` distinct values come out exact. On concrete parameters codebooks are trimmed to the entries in use.
    Traceable with static ``k``; codebooks then keep ``k`` entries, of which surplus ones repeat the largest value.

    Args:
      params: pytree of arrays.
      k: number of values of a leaf, or of a group of leaves.
      rules: which leaves to take, as :func:`bqjax.tree.select` reads them; ``setting`` is ``k`` for the leaves of a rule, and
        leaves of one ``group`` share a codebook, found for all their weights together. Without rules, floating-point
        leaves of two or more dimensions are taken.

    Returns:
      The tree with a :class:`bqjax.leaves.Clustered` of ``d = 1`` for every chosen leaf; its codebook ``[k, 1]`` has the
      leaf's dtype.

    Raises:
      ValueError: ``k`` is no integer of at least 1; leaves of one group differ in ``k`` or dtype; a leaf holds NaN or infinite
        values (concrete parameters only); whatever :func:`bqjax.tree.select` refuses.

    Example:
      >>> import numpy as np
      >>> from bqjax.leaves import decode
      >>> params = {"w": np.float32([[0.9, -2.0], [1.1, -2.0]]), "b": np.zeros(2, np.float32)}
      >>> compressed = kmeans_share(params, k=2)
      >>> compressed["w"].k, decode(compressed)["w"].tolist()
      (2, [[1.0, -2.0], [1.0, -2.0]])
    """
    taken = select(params, rules).taken
    leaves = named_leaves(params)
    groups: dict[tuple[str | None, str], list[str]] = {}
    for name, rule in taken.items():
        check_finite(name, leaves[name])
        groups.setdefault((rule.group, "" if rule.group is not None else name), []).append(name)

    shared: dict[str, Clustered] = {}
    for (group, _), names in groups.items():
        sizes = {name: _size(name, k if taken[name].setting is None else taken[name].setting) for name in names}
        dtypes = {name: np.dtype(leaves[name].dtype) for name in names}
        for what, each in (("k", sizes), ("dtype", dtypes)):
            if len(set(each.values())) > 1:
                raise ValueError(f"leaves of group {group!r} share one codebook and must agree in {what}, got {each}")
        values = jnp.concatenate([jnp.ravel(leaves[name]) for name in names])
        codebook, indices = _share(values, sizes[names[0]])
        if not isinstance(indices, jax.core.Tracer):
            codebook, indices = map(jnp.asarray, trim_codebook(codebook, indices))
        ends = np.cumsum([leaves[name].size for name in names])
        for name, part in zip(names, jnp.split(indices, ends[:-1]), strict=True):
            shared[name] = Clustered(part, codebook[:, None], leaves[name].shape, dtypes[name], group=group)
    return replace(params, shared)


def _size(name: str, k: Any) -> int:
    try:
        size = operator.index(k)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"leaf {name!r}: k must be an integer of at least 1, got {k!r}")
    return size


def _share(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Codebook ``[k]`` in the dtype of the values, and indices ``[n]``."""
    if jnp.issubdtype(values.dtype, jnp.integer):
        real = values.astype(jnp.float32)
        rounded = round_to(kmeans.kmeans_scalar(real, k).codebook, values.dtype)
        return rounded, kmeans.nearest(real, rounded.astype(jnp.float32))
    result = kmeans.kmeans_scalar(values, k)
    codebook = result.codebook.astype(values.dtype)
    if codebook.dtype == result.codebook.dtype:
        return codebook, result.indices
    # Rounding to a shorter type moves entries: each weight goes to the nearest of those that the leaf really holds.
    return codebook, kmeans.nearest(values, codebook)
