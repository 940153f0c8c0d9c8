"""Deep Compression: prune, share the values of what is left, fine-tune them, and let the file's coder do the rest.

Zero is an entry of the codebook, so that a pruned weight is an index like any other. Entropy coding of the indices then
costs what positions and values cost together, and takes the place of the paper's run lengths of zeros.

Reference:
  Han, Mao and Dally, "Deep Compression: Compressing deep neural networks with pruning, trained quantization and Huffman
  coding", ICLR 2016 (arXiv 1510.00149).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.gather import beside, end_to_end
from bqjax.core.leaves import Clustered, index_dtype, trim_codebook
from bqjax.core.rules import Rule, group_setting, grouped, select
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans import scalar as kmeans
from bqjax.kmeans.codebooks import codebook_gradients, codebooks
from bqjax.methods.baselines.pruning import magnitude_masks, prune

__all__ = ["DeepCompressionConfig", "deep_compress", "share_nonzero", "shared_gradients"]


@dataclass(frozen=True, kw_only=True)
class DeepCompressionConfig:
    """How leaves are pruned and shared.

    Attributes:
      sparsity: part of the weights that become zero, in [0, 1).
      k: values of a leaf, zero among them; at least 2.
    """

    sparsity: float = 0.8
    k: int = 16

    def __post_init__(self) -> None:
        _size("k", self.k)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}: it is the part of the weights that become zero")


def _size(what: str, k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 2:
        raise ValueError(f"{what} must be an integer of at least 2, zero and one more, got {k!r}")
    return int(k)


def deep_compress(
    params: Any,
    rules: Sequence[Rule[DeepCompressionConfig]] | None = None,
    *,
    config: DeepCompressionConfig | None = None,
) -> Any:
    """Magnitude pruning, then k-means weight sharing of what is left, without training in between.

    The paper trains after either: prune step by step with :func:`bqjax.methods.baselines.pruning.gradual_pruning`, then
    :func:`share_nonzero`, then train the codebooks with :func:`shared_gradients`.

    Args:
      params: pytree of arrays.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is a config. Leaves of one ``group``
        are pruned together and share a codebook. Without rules, floating-point leaves of two or more dimensions are taken.
      config: for leaves whose rule has no setting; None is ``DeepCompressionConfig()``.

    Returns:
      The tree as :func:`share_nonzero` gives it. Traceable.

    Raises:
      ValueError: as :func:`bqjax.methods.baselines.pruning.magnitude_masks` and :func:`share_nonzero`.

    Example:
      >>> params = {"w": np.float32([[0.1, -2.0, 0.9, 0.0], [1.1, -2.2, 0.2, 0.3]])}
      >>> leaf = deep_compress(params, config=DeepCompressionConfig(sparsity=0.5, k=3))["w"]
      >>> np.float64(leaf.decode()).round(2).tolist()
      [[0.0, -2.1, 1.0, 0.0], [1.0, -2.1, 0.0, 0.0]]
    """
    settings: dict[str, DeepCompressionConfig] = {}
    taken = select(params, rules).taken
    for name, rule in taken.items():
        if rule.setting is not None and not isinstance(rule.setting, DeepCompressionConfig):
            raise ValueError(f"rule {rule.pattern!r}: the setting must be a DeepCompressionConfig, got {rule.setting!r}")
        settings[name] = rule.setting or config or DeepCompressionConfig()

    def with_setting(field: str) -> list[Rule[Any]]:
        # One rule for each leaf, brackets and stars in names taken literally.
        return [with_fields(rule, pattern=_literal(name), setting=getattr(settings[name], field)) for name, rule in taken.items()]

    if not taken:
        return params
    return share_nonzero(prune(params, magnitude_masks(params, 0.0, with_setting("sparsity"))), 2, with_setting("k"))


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def share_nonzero(params: Any, k: int = 16, rules: Sequence[Rule[int]] | None = None) -> Any:
    """k-means weight sharing of the weights that are not zero; zeros stay zero.

    Args:
      params: pytree of arrays, pruned.
      k: values of a leaf, or of a group of leaves, zero among them.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is ``k``, and leaves of one ``group``
        share a codebook. Without rules, floating-point leaves of two or more dimensions are taken.

    Returns:
      The tree with a :class:`bqjax.core.leaves.Clustered` of ``d = 1`` for every chosen leaf: codebook ``[k, 1]`` of the leaf's
      dtype, whose first entry is zero and has index 0. Codebooks of concrete parameters are cut to the entries in use; leaves with
      fewer than ``k`` distinct values then come out exact. Traceable.

    Raises:
      ValueError: ``k`` below 2; a leaf or group that is all zero (concrete parameters only), integer leaves, leaves of one group
        that differ in ``k`` or dtype, NaN or infinite weights (concrete ones only); whatever :func:`bqjax.core.rules.select`
        refuses.

    Example:
      >>> leaf = share_nonzero({"w": np.float32([[0, 3], [1, 0]])}, 4)["w"]
      >>> leaf.codebook.tolist(), leaf.indices.tolist()
      ([[0.0], [1.0], [3.0]], [0, 2, 1, 0])
    """
    leaves, taken = named_leaves(params), select(params, rules).taken
    new: dict[str, Clustered] = {}
    for group, names in grouped(taken):
        setting = group_setting(group, names, taken)
        size = _size(f"leaf {names[0]!r}: k", k if setting is None else setting)
        dtypes = {name: np.dtype(leaves[name].dtype) for name in names}
        if len(set(dtypes.values())) > 1:
            raise ValueError(f"leaves of group {group!r} share one codebook and must agree in dtype, got {dtypes}")
        for name in names:
            if not jnp.issubdtype(dtypes[name], jnp.floating):
                raise ValueError(f"leaf {name!r} is of integers, {dtypes[name]}: skip it, Rule({name!r}, skip=True)")
            check_finite(name, leaves[name])
        values = end_to_end([leaves[name] for name in names])
        if not isinstance(values, jax.core.Tracer) and not bool((values != 0).any()):
            raise ValueError(
                f"leaf {names[0]!r} is all zero, nothing is left to share: prune less, or skip it, Rule({names[0]!r}, skip=True)"
            )
        codebook, indices = _share(values, size)
        codebook, indices = trim_codebook(codebook[:, None], indices)
        ends = np.cumsum([leaves[name].size for name in names])
        for name, part in zip(names, jnp.split(indices, ends[:-1]) if len(ends) > 1 else [indices], strict=True):
            part, entries = (beside(leaves[name], x) for x in (part, codebook))
            new[name] = Clustered(part, entries, np.shape(leaves[name]), dtypes[name], group=group)
    return replace(params, new)


def _share(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Codebook ``[k]``, zero first, in the dtype of the values, and indices ``[n]``."""
    if isinstance(values, jax.core.Tracer):
        found = kmeans.kmeans_scalar(values, k - 1, _used(values)).codebook
    else:
        # How many are left is known: clustering only those takes that much less time and memory.
        host = np.asarray(values)
        found = kmeans.kmeans_scalar(host[host != 0], k - 1).codebook
    # To the nearest of what the leaf really holds: rounding to a shorter type moves entries.
    codebook = found.astype(values.dtype)
    indices = _after_zero(kmeans.nearest(values, codebook), values, index_dtype(k))
    return jnp.concatenate([jnp.zeros(1, codebook.dtype), codebook]), indices


@jax.jit
def _used(values: jax.Array) -> jax.Array:
    return (values != 0).astype(jnp.promote_types(values.dtype, jnp.float32))


@functools.partial(jax.jit, static_argnums=2)
def _after_zero(indices: jax.Array, values: jax.Array, dtype: np.dtype) -> jax.Array:
    return jnp.where(values != 0, indices.astype(dtype) + jnp.ones((), dtype), jnp.zeros((), dtype))


def shared_gradients(tree: Any, grads: Any) -> dict[str, jax.Array]:
    """:func:`bqjax.kmeans.codebooks.codebook_gradients` with none for entries that are zero: what is pruned stays so. Traceable.

    The gradient of a shared value is the sum of those of all weights that it stands for. Any optimiser trains ``codebooks(tree)``
    with it, one whose update of a gradient of zero is zero; ``with_codebooks`` puts them back.

    Args:
      tree: tree of clustered leaves.
      grads: gradients of the decoded weights, a pytree with the same names.

    Returns:
      ``[k, d]`` by the names of :func:`bqjax.kmeans.codebooks.codebooks`.

    Example:
      >>> leaf = Clustered(np.array([0, 1, 1], np.uint8), np.float32([[0.0], [5.0]]), (3,), np.float32)
      >>> shared_gradients({"w": leaf}, {"w": np.float32([1, 2, 3])})["w"].tolist()
      [[0.0], [5.0]]
    """
    entries = codebooks(tree)
    return {name: jnp.where(entries[name] == 0, 0, g) for name, g in codebook_gradients(tree, grads).items()}
