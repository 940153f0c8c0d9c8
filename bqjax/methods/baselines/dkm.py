"""Differentiable k-means (DKM, IDKM): a network trained on weights that soft k-means has drawn to few values.

The forward pass sees ``sum_j a_ij c_j`` in place of the block ``w_i``; gradients reach the weights through attention and codebook
alike, so that weights and codebook are trained together by the network's own loss. At the end every block goes to its nearest
entry. :mod:`bqjax.methods.baselines.soft_kmeans` has the formulas, and what keeps memory small.

References:
  Cho et al., "DKM: Differentiable k-means clustering layer for neural network compression", ICLR 2022 (arXiv 2108.12659).
  Jaffe, Singh, Bullo, "IDKM: Memory efficient neural network quantization via implicit, differentiable k-means", 2023
  (arXiv 2312.07759).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.blocks import from_blocks, output_first
from bqjax.core.leaves import Clustered, index_dtype, mask_zeros, trim_codebook
from bqjax.core.rules import Rule, select
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.assignment import nearest_block
from bqjax.kmeans.fixed_levels import pruned
from bqjax.kmeans.scalar import kmeans_scalar
from bqjax.methods.baselines.soft_kmeans import Layout, Solver, from_tiles, in_place, soft_kmeans, spread, to_tiles, variance
from bqjax.methods.baselines.weight_blocks import block_parts, check_blocks, cluster

__all__ = ["DKMConfig", "dkm_forward", "dkm_harden", "dkm_start"]


@dataclass(frozen=True, kw_only=True)
class DKMConfig:
    """How leaves are clustered while they are trained.

    Attributes:
      k: entries of a codebook.
      d: weights of a block, neighbouring inputs of one output channel; ``log2(k) / d`` bits a weight.
      temperature: of the attention, above 0; small is hard.
      relative: the temperature is in units of ``var(w) k^(-2/d)``, what rate-distortion theory has for the squared error of that
        many bits, so that one number fits layers of all scales and all ``k``; False: in units of squared weights, as in the papers.
      iterations: most iterations of soft k-means in a step.
      tolerance: iterations end when no entry moves further, in units of the square root of the absolute temperature.
      implicit: IDKM, gradients of the fixed point, for which memory is the same whatever the iterations; False: DKM, gradients
        of the iterations done.
      solver_steps: with ``implicit``, steps of GMRES for the gradient, each as much work as an iteration; 0: Jacobian-free.
    """

    k: int = 16
    d: int = 1
    temperature: float = 1.0
    relative: bool = True
    iterations: int = 5
    tolerance: float = 1e-4
    implicit: bool = False
    solver_steps: int = 4

    def __post_init__(self) -> None:
        for what, least in (("k", 1), ("d", 1), ("iterations", 1), ("solver_steps", 0)):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{what} must be an integer of at least {least}, got {value!r}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature must be positive and finite, got {self.temperature}: at 0 assignments are hard and have no "
                "gradient; dkm_harden() makes them hard at the end"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}")

    @property
    def solver(self) -> Solver:
        return Solver(self.iterations, self.tolerance, self.implicit, self.solver_steps)


def _chosen(params: Any, rules: Sequence[Rule[DKMConfig]] | None, config: DKMConfig | None) -> Iterator[tuple[str, Any, DKMConfig]]:
    """Name, leaf and setting of every chosen leaf."""
    leaves = named_leaves(params)
    for name, rule in select(params, rules).taken.items():
        if rule.group is not None:
            raise ValueError(f"leaf {name!r} is in group {rule.group!r}, but codebooks are not shared: take group out of the rule")
        if rule.setting is not None and not isinstance(rule.setting, DKMConfig):
            raise ValueError(f"rule {rule.pattern!r}: the setting must be a DKMConfig, got {rule.setting!r}")
        setting = rule.setting or config or DKMConfig()
        check_blocks(name, leaves[name], setting.k, setting.d)
        yield name, leaves[name], setting


def _order(leaf: Any, d: int) -> tuple[int, ...]:
    """Axes in the order in which blocks are cut; single weights stay as they lie."""
    return output_first(leaf.ndim) if d > 1 else tuple(range(leaf.ndim))


def _blocks(name: str, leaf: Any, setting: DKMConfig) -> tuple[jax.Array, jax.Array | None]:
    """Blocks ``[n, d]`` in float32, and which of their entries are real where not all are."""
    if setting.d == 1:
        return jnp.asarray(leaf).astype(jnp.float32).reshape(-1, 1), None
    return block_parts(name, leaf, setting.k, setting.d)


def dkm_start(
    params: Any, rules: Sequence[Rule[DKMConfig]] | None = None, *, key: jax.Array, config: DKMConfig | None = None
) -> dict[str, jax.Array]:
    """Initial codebooks of DKM: those of (hard) k-means, ``[k, d]`` float32 by leaf name. Traceable.

    Args:
      params: pytree of arrays.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is a config. Without rules,
        floating-point leaves of two or more dimensions are taken.
      key: a JAX random key, for the seeds of k-means.
      config: for leaves whose rule has no setting; None is ``DKMConfig()``.

    Raises:
      ValueError: as :func:`bqjax.methods.baselines.product.product_quantize`.
    """
    codebooks = {}
    for i, (name, leaf, setting) in enumerate(_chosen(params, rules, config)):
        x, mask = _blocks(name, leaf, setting)
        if setting.d == 1:
            codebooks[name] = kmeans_scalar(x[:, 0], setting.k).codebook[:, None].astype(jnp.float32)
        else:
            codebooks[name] = cluster(x, mask, setting.k, jax.random.fold_in(key, i), 25).codebook
    return codebooks


def dkm_forward(
    params: Any,
    codebooks: Mapping[str, Any],
    rules: Sequence[Rule[DKMConfig]] | None = None,
    *,
    config: DKMConfig | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """The differentiable k-means layer: weights drawn towards their codebooks, and the codebooks to start the next step from.

    Args:
      params: pytree of arrays, the weights that an optimiser moves.
      codebooks: of the last step, or from :func:`dkm_start`; no gradient goes to them.
      rules, config: those of :func:`dkm_start`.

    Returns:
      ``params`` with the chosen leaves replaced by ``sum_j a_ij c_j``, of their dtype; and the new codebooks. Traceable, and
      differentiable in reverse mode with respect to ``params``.

    Raises:
      ValueError: a codebook is missing or has another shape; whatever :func:`dkm_start` refuses.

    Example:
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
      >>> config = DKMConfig(k=4)
      >>> codebooks = dkm_start(params, key=jax.random.key(1), config=config)
      >>> loss = lambda p, c: (jnp.square(dkm_forward(p, c, config=config)[0]["w"]).sum(), dkm_forward(p, c, config=config)[1])
      >>> grads, codebooks = jax.grad(loss, has_aux=True)(params, codebooks)
      >>> grads["w"].shape, codebooks["w"].shape
      ((8, 8), (4, 1))
    """
    new, moved = {}, {}
    for name, leaf, setting in _chosen(params, rules, config):
        start = lax.stop_gradient(_codebook(name, codebooks, setting))
        values, codebook = _drawn(jnp.asarray(leaf), start, setting)
        new[name] = values.astype(leaf.dtype)
        moved[name] = lax.stop_gradient(codebook)
    return replace(params, new), moved


# Compiled as a whole: called outside of jit, its loops would be compiled anew each time.
@functools.partial(jax.jit, static_argnums=2)
def _drawn(leaf: jax.Array, start: jax.Array, setting: DKMConfig) -> tuple[jax.Array, jax.Array]:
    """What a leaf is drawn to, and the codebook."""
    shape, d, k = leaf.shape, setting.d, setting.k
    layout = _as_it_lies(shape, d, k)
    if layout is not None:
        x = leaf.astype(jnp.float32).reshape(-1, shape[-1])
        values, codebook = _soft(x, start, layout, setting)
        return values.reshape(shape), codebook
    order = _order(leaf, d)
    points = _blocks("", leaf, setting)[0]
    # Blocks of one know no rows.
    row = math.prod(shape[a] for a in order[1:]) if d > 1 else 1
    layout = spread(points.shape[0], d, row, k)
    values, codebook = _soft(to_tiles(points, layout), start, layout, setting)
    return from_blocks(from_tiles(values, layout), shape, order), codebook


def _as_it_lies(shape: Sequence[int], d: int, k: int) -> Layout | None:
    """The layout of a leaf whose blocks are tiles where they are: single weights, and inputs of large dense layers."""
    if not shape or (d > 1 and (len(shape) != 2 or shape[0] % d)):
        return None
    return in_place(d, math.prod(shape[:-1]) // d, shape[-1], k)


def _soft(x: jax.Array, start: jax.Array, layout: Layout, setting: DKMConfig) -> tuple[jax.Array, jax.Array]:
    temperature = _temperature(lax.stop_gradient(x), layout, setting)
    return soft_kmeans(x, start, temperature, layout, setting.solver)


def _temperature(x: jax.Array, layout: Layout, setting: DKMConfig) -> jax.Array:
    temperature = jnp.asarray(setting.temperature, jnp.float32)
    if setting.relative:
        temperature = temperature * variance(x, layout) * setting.k ** (-2 / setting.d)
    # Weights that are all the same have no variance: any temperature will do.
    return jnp.where(temperature >= jnp.finfo(jnp.float32).tiny, temperature, 1)


def _codebook(name: str, codebooks: Mapping[str, Any], setting: DKMConfig) -> jax.Array:
    if name not in codebooks or np.shape(codebooks[name]) != (setting.k, setting.d):
        found = np.shape(codebooks[name]) if name in codebooks else "nothing"
        raise ValueError(f"leaf {name!r} needs a codebook of shape {(setting.k, setting.d)} from dkm_start(), got {found}")
    return jnp.asarray(codebooks[name], jnp.float32)


def dkm_harden(
    params: Any,
    codebooks: Mapping[str, Any],
    rules: Sequence[Rule[DKMConfig]] | None = None,
    *,
    config: DKMConfig | None = None,
) -> Any:
    """Hard assignment after DKM: every block goes to the nearest entry of its codebook, which a file holds. Traceable.

    Zeros of pruned leaves, of which 5 % or more of the weights are zero, stay zeros: of single weights, zero is an entry beside the
    ``k``; over blocks there is a mask (concrete parameters only).

    Args:
      params: the weights that were trained.
      codebooks: of the last step.
      rules, config: those of training.

    Returns:
      The tree with a :class:`bqjax.core.leaves.Clustered` for every chosen leaf, its codebook in the leaf's dtype, over blocks of
      pruned weights in a :class:`bqjax.core.leaves.Masked`; codebooks of concrete parameters are cut to the entries in use.

    Raises:
      ValueError: as :func:`dkm_forward`.
    """
    new: dict[str, Any] = {}
    for name, leaf, setting in _chosen(params, rules, config):
        x, mask = _blocks(name, leaf, setting)
        codebook = _codebook(name, codebooks, setting).astype(leaf.dtype)
        kept = pruned(leaf)
        if kept is not None and setting.d == 1:
            codebook = jnp.concatenate([codebook, jnp.zeros_like(codebook[:1])])
        indices = nearest_block(x, codebook.astype(jnp.float32), mask=mask)
        codebook, indices = trim_codebook(codebook, indices)
        indices = indices.astype(index_dtype(codebook.shape[0]))
        made = Clustered(indices, codebook, np.shape(leaf), leaf.dtype, _order(leaf, setting.d))
        new[name] = made if kept is None else mask_zeros(made, kept)
    return replace(params, new)
