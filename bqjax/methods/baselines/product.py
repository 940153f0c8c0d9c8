"""Product quantization and binarization, with no data and no training.

Product quantization cuts a weight into blocks of ``d`` neighbours and keeps, for each, the number of the nearest of ``k``
blocks. It is :mod:`bqjax.methods.gwk.cluster` without gradients, for any ``k``. Binarization keeps a sign for each weight and a
scale.

References:
  Gong, Liu, Yang, Bourdev, "Compressing deep convolutional networks using vector quantization", 2014 (arXiv 1412.6115).
  Rastegari et al., "XNOR-Net", ECCV 2016 (arXiv 1603.05279), section 3.1: the scale of signs.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import Affine, Clustered, mask_zeros, trim_codebook
from bqjax.core.rules import Rule, select
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.fixed_levels import pruned
from bqjax.kmeans.vector import kmeans_tiles
from bqjax.methods.baselines.weight_blocks import (
    block_parts,
    blocks_in_place,
    check_blocks,
    cluster,
    clustered_blocks,
    output_order,
    pruned_blocks,
    stored,
)

__all__ = ["ProductConfig", "binarize", "product_quantize"]


@dataclass(frozen=True, kw_only=True)
class ProductConfig:
    """How a weight is cut into blocks and how many of them are kept.

    Attributes:
      k: entries of a codebook.
      d: weights of a block, neighbouring inputs of one output channel.
      iterations: most iterations of k-means.
    """

    k: int = 256
    d: int = 4
    iterations: int = 25

    def __post_init__(self) -> None:
        for what in ("k", "d", "iterations"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{what} must be an integer of at least 1, got {value!r}")


def product_quantize(
    params: Any, rules: Sequence[Rule[ProductConfig]] | None = None, *, key: jax.Array, config: ProductConfig | None = None
) -> Any:
    """Product quantization: replaces each block of ``d`` weights by the nearest of ``k``, found by k-means.

    ``min sum_i |w_i - c_a(i)|^2`` over codebook ``c`` and assignment ``a``. All blocks of a leaf share one codebook, as in Stock
    et al. 2020; Gong et al. have one for every set of columns, of which one leaf's codebooks would take many times the room.

    Args:
      params: pytree of arrays.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is a config. Without rules,
        floating-point leaves of two or more dimensions are taken.
      key: a JAX random key, for the seeds of k-means.
      config: for leaves whose rule has no setting; None is ``ProductConfig()``.

    Returns:
      The tree with a :class:`bqjax.core.leaves.Clustered` for every chosen leaf: codebook ``[k, d]`` of the leaf's dtype, index
      ``[n / d]``. Where ``d`` does not divide a row, the row's last block is padded with entries that count nowhere. Where a leaf
      has fewer than ``k`` distinct blocks it comes out within rounding. Codebooks of concrete parameters are cut to the
      entries in use. Traceable.
      Zeros of pruned leaves, of which 5 % or more of the weights are zero, stay zeros (concrete parameters only): entries are
      fitted to the other weights, blocks of zeros have one of the ``k`` entries, and where zeros stand in other blocks the leaf
      is a :class:`bqjax.core.leaves.Masked`.

    Raises:
      ValueError: a block longer than a row, more entries than blocks, integer leaves, rules with groups, NaN or infinite
        weights (concrete ones only); whatever :func:`bqjax.core.rules.select` refuses. The message names the leaf.

    Example:
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 8)), "bias": jnp.zeros(8)}
      >>> tree = product_quantize(params, key=jax.random.key(1), config=ProductConfig(k=4, d=2))
      >>> tree["kernel"].codebook.shape, tree["kernel"].indices.shape
      ((4, 2), (32,))
    """
    leaves, taken = named_leaves(params), select(params, rules).taken
    new: dict[str, Any] = {}
    for i, (name, rule) in enumerate(taken.items()):
        setting = _setting(name, rule, config)
        leaf = leaves[name]
        leaf_key = jax.random.fold_in(key, i)
        if (found := pruned_blocks(name, leaf, setting.k, setting.d)) is not None:
            result = cluster(found.x, found.mask, found.k, leaf_key, setting.iterations)
            made = stored(found.x, found.mask, result.codebook, result.indices, leaf.dtype)
            new[name] = mask_zeros(clustered_blocks(leaf, *found.whole(*made)), found.kept)
            continue
        if leaf.dtype == jnp.float32 and blocks_in_place(leaf.shape, setting.d):
            check_blocks(name, leaf, setting.k, setting.d)
            result = kmeans_tiles(jnp.asarray(leaf), setting.d, setting.k, key=leaf_key, iterations=setting.iterations)
            codebook, indices = result.codebook, output_order(result.indices)
        else:
            x, mask = block_parts(name, leaf, setting.k, setting.d)
            result = cluster(x, mask, setting.k, leaf_key, setting.iterations)
            codebook, indices = stored(x, mask, result.codebook, result.indices, leaf.dtype)
        new[name] = clustered_blocks(leaf, codebook, indices)
    return replace(params, new)


def _setting(name: str, rule: Rule[ProductConfig], config: ProductConfig | None) -> ProductConfig:
    if rule.group is not None:
        raise ValueError(f"leaf {name!r} is in group {rule.group!r}, but codebooks are not shared: take group out of the rule")
    if rule.setting is not None and not isinstance(rule.setting, ProductConfig):
        raise ValueError(f"rule {rule.pattern!r}: the setting must be a ProductConfig, got {rule.setting!r}")
    return rule.setting or config or ProductConfig()


def binarize(params: Any, rules: Sequence[Rule[None]] | None = None, *, axis: int | None = None) -> Any:
    """Binarization: keeps the sign of every weight, and the mean size of all, or of those of one channel.

    ``w -> a sign(w)``, ``a = mean |w|``, which is the ``a`` of least squared error; ``sign(0) = 1``. Gong et al. have ``a = 1``.
    Of pruned leaves, of which 5 % or more of the weights are zero, zeros stay zeros and ``a`` is the mean of the others (concrete
    parameters only).

    Args:
      params: pytree of arrays.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them. Without rules, floating-point leaves of two or
        more dimensions are taken.
      axis: the axis along which every slice has its own ``a``, -1 for output channels; None: one for a leaf.

    Returns:
      The tree with, for every chosen leaf, a :class:`bqjax.core.leaves.Clustered` of the entries ``-a`` and ``a``; or, with an
      axis, a :class:`bqjax.core.leaves.Affine` with codes -1 and 1, of two bits because of the code 0, and scales ``a`` in
      float32. Slices that are zero everywhere come out exact, with code 0. Traceable.

    Raises:
      ValueError: an axis that a leaf does not have, integer leaves, rules with groups or settings, NaN or infinite weights
        (concrete ones only); whatever :func:`bqjax.core.rules.select` refuses. The message names the leaf.

    Example:
      >>> leaf = binarize({"w": np.float32([[1, -2], [3, -2]])})["w"]
      >>> leaf.decode().tolist(), binarize({"w": leaf.decode() * 2}, axis=0)["w"].scale.tolist()
      ([[2.0, -2.0], [2.0, -2.0]], [4.0, 4.0])
    """
    leaves, taken = named_leaves(params), select(params, rules).taken
    new: dict[str, Any] = {}
    for name, rule in taken.items():
        leaf = leaves[name]
        if rule.group is not None or rule.setting is not None:
            raise ValueError(f"rule {rule.pattern!r}: binarization has neither groups nor settings, got {rule}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"leaf {name!r} is of integers, {leaf.dtype}: skip it, Rule({name!r}, skip=True)")
        check_finite(name, leaf)
        ternary = pruned(leaf) is not None
        if axis is None:
            codebook, indices = _signs(jnp.asarray(leaf), ternary)
            codebook, indices = trim_codebook(codebook, indices)
            new[name] = Clustered(indices, codebook, leaf.shape, leaf.dtype)
            continue
        if not -leaf.ndim <= operator.index(axis) < leaf.ndim:
            raise ValueError(f"leaf {name!r} has {leaf.ndim} dimensions and no axis {axis}: skip it, Rule({name!r}, skip=True)")
        codes, scale = _channel_signs(jnp.asarray(leaf), axis % leaf.ndim, ternary)
        new[name] = Affine(codes, scale, jnp.zeros(scale.shape, jnp.int32), axis % leaf.ndim, leaf.dtype, bits=2)
    return replace(params, new)


def _mean_size(weight: jax.Array, axes: tuple[int, ...], ternary: bool) -> jax.Array:
    """``mean |w|`` in float32, of numbers so small that their sum cannot overflow; with ``ternary`` of those that are not zero."""
    size = jnp.abs(weight).astype(jnp.float32)
    if ternary:
        return (size / jnp.maximum((size > 0).sum(axes, keepdims=True), 1)).sum(axes)
    return (size / np.float32(math.prod(weight.shape[a] for a in axes))).sum(axes)


@functools.partial(jax.jit, static_argnums=1)
def _signs(weight: jax.Array, ternary: bool) -> tuple[jax.Array, jax.Array]:
    size = _mean_size(weight, tuple(range(weight.ndim)), ternary)
    entries, signs = [-size, size], (weight >= 0).astype(jnp.uint8)
    if ternary:
        entries, signs = [*entries, jnp.zeros_like(size)], jnp.where(weight == 0, jnp.uint8(2), signs)
    return jnp.stack(entries)[:, None].astype(weight.dtype), signs.reshape(-1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _channel_signs(weight: jax.Array, axis: int, ternary: bool) -> tuple[jax.Array, jax.Array]:
    size = _mean_size(weight, tuple(a for a in range(weight.ndim) if a != axis), ternary)
    used = size >= jnp.finfo(jnp.float32).tiny
    signs = jnp.where(weight >= 0, 1, -1).astype(jnp.int8)
    if ternary:
        signs = jnp.where(weight == 0, jnp.int8(0), signs)
    shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
    return jnp.where(used.reshape(shape), signs, 0).astype(jnp.int8), jnp.where(used, size, 1)
