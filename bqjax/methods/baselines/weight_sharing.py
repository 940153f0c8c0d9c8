"""Palettization (k-means weight sharing, a lookup table a leaf), the quantization stage of Deep Compression.

Each chosen leaf keeps ``k`` values, those that stand for its weights with the least squared error, and for each weight
the number of its value. There is no data, no gradient and no retraining: the baseline for methods that measure
sensitivity first. :func:`search_k` adds the choice of ``k`` for each leaf by what it costs the network.

References:
  Han, Mao and Dally, "Deep Compression: Compressing deep neural networks with pruning, trained quantization and Huffman
  coding", ICLR 2016 (arXiv:1510.00149), section 3.
  Dupuis, Novo, O'Connor, Bosio, "Sensitivity analysis and compression opportunities in DNNs using weight sharing", DDECS 2020,
  and "A heuristic exploration of retraining-free weight-sharing for CNN compression", ASP-DAC 2022: ``k`` for each layer.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.gather import beside, end_to_end
from bqjax.core.leaves import Clustered, decode, round_to, trim_codebook
from bqjax.core.rules import Rule, group_setting, grouped, select
from bqjax.core.tree import by_size, check_finite, named_leaves, replace
from bqjax.kmeans import scalar as kmeans
from bqjax.kmeans.fixed_levels import fixed_levels, joined, loose

__all__ = ["ShareChoice", "kmeans_share", "search_k"]


def kmeans_share(params: Any, k: int = 16, rules: Sequence[Rule[int]] | None = None) -> Any:
    """Palettization: replaces the weights of each chosen leaf by their ``k`` best values in the sense of squared error.

    Zeros of pruned leaves and sentinels keep levels of their own, out of the ``k``; see
    :func:`bqjax.kmeans.fixed_levels.fixed_levels` (concrete parameters only). Leaves with at most ``k`` distinct values come out
    exact. On concrete parameters codebooks are trimmed to the entries in use.
    Traceable with static ``k``; codebooks then keep ``k`` entries, of which surplus ones repeat the largest value.

    Args:
      params: pytree of arrays.
      k: number of values of a leaf, or of a group of leaves.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is ``k`` for the leaves of a rule, and
        leaves of one ``group`` share a codebook, found for all their weights together. Without rules, floating-point
        leaves of two or more dimensions are taken.

    Returns:
      The tree with a :class:`bqjax.core.leaves.Clustered` of ``d = 1`` for every chosen leaf; its codebook ``[k, 1]`` has the
      leaf's dtype.

    Raises:
      ValueError: ``k`` is no integer of at least 1; leaves of one group differ in ``k`` or dtype; a leaf holds NaN or infinite
        values (concrete parameters only); whatever :func:`bqjax.core.rules.select` refuses.

    Example:
      >>> import numpy as np
      >>> from bqjax.core.leaves import decode
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
        values = end_to_end([leaves[name] for name in names])
        codebook, indices = _share(values, sizes[names[0]])
        codebook, indices = trim_codebook(codebook[:, None], indices)
        ends = np.cumsum([leaves[name].size for name in names])
        for name, part in zip(names, jnp.split(indices, ends[:-1]) if len(ends) > 1 else [indices], strict=True):
            part, entries = (beside(leaves[name], x) for x in (part, codebook))
            shared[name] = Clustered(part, entries, leaves[name].shape, dtypes[name], group=group)
    return replace(params, shared)


def _size(name: str, k: Any) -> int:
    try:
        size = operator.index(k)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"leaf {name!r}: k must be an integer of at least 1, got {k!r}")
    return size


def _share(values: jax.Array, k: int) -> tuple[Any, Any]:
    """Codebook ``[k]`` in the dtype of the values, and indices ``[n]``."""
    if not isinstance(values, jax.core.Tracer):
        host = np.asarray(values)
        levels = fixed_levels([host])
        if 0 < levels.size < k:
            free = loose(host, levels)
            if free.any():
                codebook, indices = map(np.asarray, _fitted(jnp.asarray(host[free]), k - levels.size))
                codebook, indices = joined(host, levels, free, codebook, indices)
                return jnp.asarray(codebook), jnp.asarray(indices)
    return _fitted(values, k)


def _fitted(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Of values that may all move."""
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


class ShareChoice(NamedTuple):
    """What :func:`search_k` chose for a leaf.

    Attributes:
      k: number of values; None: the leaf was left as it was, no ``k`` keeping to its limit.
      drop: what the score lost by it, measured; 0 where the leaf was left.
      tried: the drop at every ``k`` that was measured, infinite where the score was NaN.
    """

    k: int | None
    drop: float
    tried: Mapping[int, float]


def search_k(
    params: Any,
    score: Callable[[Any], float],
    max_drop: float,
    rules: Sequence[Rule[float]] | None = None,
    *,
    ks: Sequence[int] = (2, 4, 8, 16, 32, 64, 128, 256),
    together: bool = True,
) -> tuple[Any, dict[str, ShareChoice]]:
    """Palettization with the least ``k`` for every leaf that costs the score at most ``max_drop``. Not traceable.

    Leaves are taken in descending order of size. For each, the least ``k`` is found by bisection in ``ks``, about ``log2(len(ks))``
    evaluations, as if the drop never grew with ``k``; whatever is chosen was itself measured. In all, leaves cost the score at
    most the sum of their limits where ``together``.

    Args:
      params: pytree of arrays, concrete.
      score: ``score(params) -> float`` on calibration data, the more the better; it is given decoded parameters.
      max_drop: what a leaf may cost, in units of the score, at least 0.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is the ``max_drop`` of a rule's
        leaves, and leaves of one ``group`` share a codebook and a drop. Without rules, floating-point leaves of two or more
        dimensions.
      ks: numbers of values to choose from.
      together: drops are measured with all leaves before in their compressed form, against the score that these had; False:
        each leaf by itself in the network as it was, which says how sensitive it is but not what all cost together.

    Returns:
      The compressed tree and a :class:`ShareChoice` by leaf name. Score it before use: the limit was kept leaf by leaf.

    Raises:
      ValueError: no or repeated ``ks`` or ones below 1, a limit that is negative or NaN, a score of the parameters as they are
        that is not finite; whatever :func:`kmeans_share` refuses.

    Example:
      >>> import numpy as np
      >>> params = {"w": np.float32([[1, 2, 3, 4], [1, 2, 3, 4]]), "v": np.float32([[5, 6]])}
      >>> score = lambda p: -float(abs(p["w"] - params["w"]).max()) - 10 * float(abs(p["v"] - params["v"]).max())
      >>> tree, chosen = search_k(params, score, max_drop=0.6, ks=(1, 2, 3, 4))
      >>> chosen["w"].k, chosen["v"].k, tree["w"].codebook.ravel().tolist()
      (2, 2, [1.5, 3.5])
    """
    sizes = sorted(_size("ks", k) for k in ks)
    if not sizes or len(set(sizes)) < len(sizes):
        raise ValueError(f"ks must be distinct numbers of values, at least one, got {list(ks)}")
    taken = select(params, rules).taken
    leaves = named_leaves(params)
    start = float(score(params))
    if not math.isfinite(start):
        raise ValueError(f"the score of the parameters as they are is {start}: nothing can be measured against it")
    units = {names[0]: (group, names) for group, names in grouped(taken)}
    total = {first: sum(leaves[name].size for name in names) for first, (_, names) in units.items()}
    order = sorted(by_size(params, list(units)), key=lambda first: -total[first])

    tree, now, choices = params, start, {}
    for first in order:
        group, names = units[first]
        limit = group_setting(group, names, taken)
        limit = _limit(first, max_drop if limit is None else limit)
        before = now if together else start
        context = tree if together else params
        shared: dict[int, Any] = {}
        tried: dict[int, float] = {}
        low, high = 0, len(sizes)
        while low < high:
            middle = (low + high) // 2
            k = sizes[middle]
            # Numbers for names: a rule for a name would have to be written so that it matches no other.
            each = kmeans_share({str(i): leaves[name] for i, name in enumerate(names)}, k, [Rule("*", group=group)])
            shared[k] = {name: each[str(i)] for i, name in enumerate(names)}
            lost = before - float(score(decode(replace(context, shared[k]))))
            tried[k] = math.inf if math.isnan(lost) else lost
            low, high = (low, middle) if tried[k] <= limit else (middle + 1, high)
        choice = ShareChoice(None, 0.0, tried)
        if high < len(sizes):
            k = sizes[high]
            choice = ShareChoice(k, tried[k], tried)
            tree = replace(tree, shared[k])
            now = before - tried[k]
        choices.update(dict.fromkeys(names, choice))
    return tree, {name: choices[name] for name in taken}


def _limit(name: str, max_drop: Any) -> float:
    limit = float(max_drop)
    if not limit >= 0:
        raise ValueError(f"leaf {name!r}: max_drop must be a number of at least 0, got {max_drop!r}")
    return limit
