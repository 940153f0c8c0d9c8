"""Residual quantization: stages of k-means, each on what the stages before it left over.

Reference:
  Gong, Liu, Yang, Bourdev, "Compressing deep convolutional networks using vector quantization", 2014 (arXiv 1412.6115),
  section 3.2.3; Chen, Guan, Wang, "Approximate nearest neighbor search by residual vector quantization", Sensors 2010.
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
from jax import lax

from bqjax.core.leaves import Residual, mask_zeros
from bqjax.core.leaves.residual import MAX_STAGES
from bqjax.core.rules import Rule, select
from bqjax.core.tree import named_leaves, replace
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

__all__ = ["ResidualConfig", "residual_quantize"]

# Lloyd iterations of one stage in a round of refitting.
_REFIT_ITERATIONS = 3


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """How a weight is cut into blocks, and of how many entries each is the sum.

    Attributes:
      stages: codebooks, 1 to 64.
      k: entries of each.
      d: weights of a block, neighbouring inputs of one output channel.
      iterations: most iterations of k-means in a stage.
      refits: rounds in which, after the last stage, each stage is fitted to what all others leave over.
    """

    stages: int = 2
    k: int = 256
    d: int = 4
    iterations: int = 25
    refits: int = 4

    def __post_init__(self) -> None:
        for what in ("stages", "k", "d", "iterations", "refits"):
            value, low, high = getattr(self, what), int(what != "refits"), MAX_STAGES if what == "stages" else None
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < low or (high is not None and value > high):
                raise ValueError(
                    f"{what} must be an integer of at least {low}{f' and at most {high}' if high else ''}, got {value!r}"
                )


def residual_quantize(
    params: Any, rules: Sequence[Rule[ResidualConfig]] | None = None, *, key: jax.Array, config: ResidualConfig | None = None
) -> Any:
    """Residual quantization: replaces each block of ``d`` weights by a sum of entries, one from each of several codebooks.

    Stage ``t`` is k-means of ``r_t``, with ``r_1 = w`` and ``r_(t+1) = r_t - c_t[a_t]`` (Gong et al.). Then, in rounds, each stage
    is fitted by Lloyd's iterations to ``w - sum_(s != t) c_s[a_s]``, its entries and its assignment both. No step raises
    ``|w - sum_t c_t[a_t]|^2``, up to rounding.

    Args:
      params: pytree of arrays.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is a config. Without rules,
        floating-point leaves of two or more dimensions are taken.
      key: a JAX random key, for the seeds of k-means.
      config: for leaves whose rule has no setting; None is ``ResidualConfig()``.

    Returns:
      The tree with a :class:`bqjax.core.leaves.Residual` for every chosen leaf: for each stage a codebook ``[k, d]`` of the leaf's
      dtype and an index ``[n / d]``, ``stages * log2(k) / d`` bits a weight. Padding as in
      :func:`bqjax.methods.baselines.product.product_quantize`. Of concrete parameters, codebooks are cut to the entries in use,
      and a stage that finds nothing left over, and those after it, are left out. Traceable.

    Raises:
      ValueError: a block longer than a row, more entries than blocks, integer leaves, rules with groups, NaN or infinite
        weights (concrete ones only); whatever :func:`bqjax.core.rules.select` refuses. The message names the leaf.

    Example:
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 8)), "bias": jnp.zeros(8)}
      >>> tree = residual_quantize(params, key=jax.random.key(1), config=ResidualConfig(stages=2, k=4, d=2))
      >>> [stage.codebook.shape for stage in tree["kernel"].stages]
      [(4, 2), (4, 2)]
    """
    leaves, taken = named_leaves(params), select(params, rules).taken
    new: dict[str, Any] = {}
    for i, (name, rule) in enumerate(taken.items()):
        if rule.group is not None:
            raise ValueError(f"leaf {name!r} is in group {rule.group!r}, but codebooks are not shared: take group out of the rule")
        if rule.setting is not None and not isinstance(rule.setting, ResidualConfig):
            raise ValueError(f"rule {rule.pattern!r}: the setting must be a ResidualConfig, got {rule.setting!r}")
        setting, leaf = rule.setting or config or ResidualConfig(), leaves[name]
        in_place = leaf.dtype == jnp.float32 and blocks_in_place(leaf.shape, setting.d)
        check_blocks(name, leaf, setting.k, setting.d)
        leaf_key = jax.random.fold_in(key, i)
        if (zeros := pruned_blocks(name, leaf, setting.k, setting.d)) is not None:
            stages = _stages(zeros.x, zeros.mask, leaf.dtype, leaf_key, with_fields(setting, k=zeros.k))
            whole = [clustered_blocks(leaf, *zeros.whole(*stage)) for stage in stages]
            new[name] = mask_zeros(Residual(whole), zeros.kept)
            continue
        if in_place:
            stages = _stages_in_place(leaf, leaf_key, setting)
        else:
            stages = _stages(*block_parts(name, leaf, setting.k, setting.d), leaf.dtype, leaf_key, setting)
        new[name] = Residual([clustered_blocks(leaf, *stage) for stage in stages])
    return replace(params, new)


_Stage = tuple[jax.Array, jax.Array]  # codebook [k, d] of the leaf's dtype, indices [n]


def _stages(x: jax.Array, mask: jax.Array | None, dtype: Any, key: jax.Array, config: ResidualConfig) -> list[_Stage]:
    stages: list[_Stage] = []
    rest = x
    for t in range(config.stages):
        if t and not isinstance(rest, jax.core.Tracer) and not bool(_any_left(rest, mask)):
            break
        result = cluster(rest, mask, config.k, jax.random.fold_in(key, t), config.iterations)
        stages.append(stored(rest, mask, result.codebook, result.indices, dtype))
        rest = _minus(rest, *stages[-1])
    for _ in range(config.refits if len(stages) > 1 else 0):
        for t, stage in enumerate(stages):
            target = _plus(rest, *stage)
            start = stage[0].astype(jnp.float32)
            result = cluster(target, mask, config.k, key, _REFIT_ITERATIONS, start, sampling=False)
            stages[t] = stored(target, mask, result.codebook, result.indices, dtype)
            rest = _minus(target, *stages[t])
    return stages


def _stages_in_place(leaf: Any, key: jax.Array, config: ResidualConfig) -> list[_Stage]:
    """:func:`_stages` of float32 blocks that stay where they lie; what is left over is one array that is written over."""
    stages: list[_Stage] = []  # indices [rows, columns]
    rest = jnp.array(leaf)
    for t in range(config.stages):
        if t and not isinstance(rest, jax.core.Tracer) and not bool(_any_left(rest, None)):
            break
        found = kmeans_tiles(rest, config.d, config.k, key=jax.random.fold_in(key, t), iterations=config.iterations)
        stages.append((found.codebook, found.indices))
        rest = _moved(rest, -found.codebook, found.indices)
    for _ in range(config.refits if len(stages) > 1 else 0):
        for t, (codebook, indices) in enumerate(stages):
            rest = _moved(rest, codebook, indices)
            found = kmeans_tiles(rest, config.d, config.k, key=key, start=codebook, iterations=_REFIT_ITERATIONS, sampling=False)
            stages[t] = found.codebook, found.indices
            rest = _moved(rest, -found.codebook, found.indices)
    return [(codebook, output_order(indices)) for codebook, indices in stages]


@functools.partial(jax.jit, donate_argnums=0)
def _moved(matrix: jax.Array, codebook: jax.Array, indices: jax.Array) -> jax.Array:
    """The matrix plus the entries of its blocks, in its own memory."""
    d = codebook.shape[1]

    def row(i: Any, matrix: jax.Array) -> jax.Array:
        entries = codebook[lax.dynamic_index_in_dim(indices, i, 0, keepdims=False)].T
        return lax.dynamic_update_slice_in_dim(matrix, lax.dynamic_slice_in_dim(matrix, i * d, d) + entries, i * d, 0)

    return lax.fori_loop(0, indices.shape[0], row, matrix)


@jax.jit
def _minus(x: jax.Array, codebook: jax.Array, indices: jax.Array) -> jax.Array:
    return x - codebook.astype(x.dtype)[indices]


@jax.jit
def _plus(x: jax.Array, codebook: jax.Array, indices: jax.Array) -> jax.Array:
    return x + codebook.astype(x.dtype)[indices]


@jax.jit
def _any_left(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    return (x != 0 if mask is None else (x != 0) & mask).any()
