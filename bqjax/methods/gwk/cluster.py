"""GWK, gradient-weighted k-means: product quantization that keeps the weights whose gradients are large.

A weight is laid out as blocks of ``d`` neighbouring inputs of one output channel (:mod:`bqjax.core.blocks`), and the blocks
are clustered into ``k = 2^bits`` with the mean absolute gradient of each as its weight:

    ``c_j = sum_i g_i w_i / sum_i g_i``  over the blocks ``i`` nearest to ``c_j``,   ``g_i = mean_d |grad|``.

The pieces that go inside a training loop are in :mod:`bqjax.methods.gwk.training`, the choice of entries there, which can weigh
the bits of entropy-coded indices, in :mod:`bqjax.methods.gwk.assignment`, running gradient statistics in
:mod:`bqjax.sensitivity.gradient_stats`.

References:
  Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), section III-D, equation 1.
  Stock et al., "And the bit goes down", ICLR 2020 (arXiv 1907.05686): the layout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import block_mask, leaf_blocks, output_first
from bqjax.core.gather import beside, gathered
from bqjax.core.leaves import Clustered, index_dtype
from bqjax.core.map_leaves import by_shape
from bqjax.core.rules import Rule, select
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.assignment import nearest_block
from bqjax.kmeans.vector import VectorKMeans, kmeans_vector
from bqjax.methods.gwk.config import GWKConfig, bits_per_weight, block_size, block_weights

__all__ = ["GWKConfig", "LeafInfo", "bits_per_weight", "gwk_cluster"]


class LeafInfo(NamedTuple):
    """What came of clustering one leaf; leaves that share a codebook have the figures of all of them together.

    Attributes:
      error: ``[]`` mean squared error of the weights, weighted by gradients.
      used: ``[]`` int32, codebook entries that an index points to.
      repaired: ``[]`` int32, entries without blocks that were moved to a block of large error, over all iterations.
      iterations: ``[]`` int32, iterations of k-means.
      bits_per_weight: indices and a codebook of 8 bits a number, per weight, by the paper's formula.
    """

    error: jax.Array
    used: jax.Array
    repaired: jax.Array
    iterations: jax.Array
    bits_per_weight: float


@functools.lru_cache
def _clusterer(k: int, iterations: int) -> Callable[..., tuple[VectorKMeans, jax.Array]]:
    def cluster(x: jax.Array, w: jax.Array, mask: jax.Array | None, start: jax.Array | None, key: jax.Array) -> Any:
        # One weight a block is a vector; in blocks of one the two kinds are the same.
        result = kmeans_vector(x, k, w[:, 0] if w.shape[1] == 1 else w, key=key, mask=mask, start=start, iterations=iterations)
        return result, (jnp.bincount(result.indices.astype(jnp.int32), length=k) > 0).sum(dtype=jnp.int32)

    return cluster


def _settings(taken: Mapping[str, Rule[GWKConfig | int]], config: GWKConfig) -> dict[str, GWKConfig]:
    found = {}
    for name, rule in taken.items():
        if rule.setting is None or isinstance(rule.setting, GWKConfig):
            found[name] = rule.setting or config
        elif isinstance(rule.setting, int) and not isinstance(rule.setting, bool):
            found[name] = with_fields(config, bits=rule.setting)
        else:
            raise ValueError(f"rule {rule.pattern!r}: the setting must be a GWKConfig or a number of bits, got {rule.setting!r}")
    return found


def _gradient(name: str, leaf: Any, grads: Mapping[str, Any] | None, setting: GWKConfig) -> Any:
    if setting.weighting == "none" or grads is None:
        return jnp.zeros(np.shape(leaf), jnp.float32)
    if name not in grads:
        raise ValueError(f"there is no gradient for leaf {name!r}")
    grad = grads[name]
    if np.shape(grad) != np.shape(leaf):
        raise ValueError(f"the gradient of leaf {name!r} has shape {np.shape(grad)}, the leaf {np.shape(leaf)}")
    if not isinstance(grad, jax.core.Tracer) and (bad := np.size(grad) - int(jnp.isfinite(grad).sum())):
        raise ValueError(f"the gradient of leaf {name!r} holds {bad} NaN or infinite values of {np.size(grad)}")
    return grad


def _joined(parts: list[jax.Array]) -> jax.Array:
    return jnp.concatenate(gathered(parts)) if len(parts) > 1 else parts[0]


class _Job(NamedTuple):
    """Leaves that get one codebook; the first names the job."""

    group: str | None
    names: list[str]
    d: int
    setting: GWKConfig

    @property
    def k(self) -> int:
        return 2**self.setting.bits


def _jobs(leaves: Mapping[str, Any], taken: Mapping[str, Rule[Any]], config: GWKConfig) -> dict[str, _Job]:
    """What is clustered together, by the name of the first leaf."""
    settings = _settings(taken, config)
    members: dict[tuple[str | None, str], list[str]] = {}
    for name, rule in taken.items():
        check_finite(name, leaves[name])
        members.setdefault((rule.group, "" if rule.group is not None else name), []).append(name)
    jobs = {}
    for (group, _), names in members.items():
        sizes = {name: block_size(np.shape(leaves[name]), settings[name]) for name in names}
        dtypes = {name: str(leaves[name].dtype) for name in names}
        for what, each in (("setting", {n: settings[n] for n in names}), ("block size", sizes), ("dtype", dtypes)):
            if len(set(each.values())) > 1:
                raise ValueError(f"leaves of group {group!r} share one codebook and must agree in {what}, got {each}")
        jobs[names[0]] = _Job(group, names, sizes[names[0]], settings[names[0]])
    return jobs


def _start(job: _Job, start: Mapping[str, Any] | None) -> jax.Array | None:
    if start is None:
        return None
    leaf = start.get(job.names[0])
    if not isinstance(leaf, Clustered) or leaf.codebook.shape != (job.k, job.d):
        found = f"a codebook of {leaf.codebook.shape}" if isinstance(leaf, Clustered) else "no codebook"
        raise ValueError(f"start has {found} for leaf {job.names[0]!r}, which needs one of {(job.k, job.d)}")
    return leaf.entries().astype(jnp.float32)


def gwk_cluster(
    params: Any,
    grads: Any,
    rules: Sequence[Rule[GWKConfig | int]] | None = None,
    *,
    key: jax.Array,
    config: GWKConfig | None = None,
    start: Any = None,
) -> tuple[Any, dict[str, LeafInfo]]:
    """Gradient-weighted product quantization: clusters the blocks of each chosen leaf.

    Traceable under ``jit`` with ``rules`` and ``config`` closed over; checks of the arrays' content are then left out.

    Args:
      params: pytree of arrays.
      grads: gradients, a pytree with the same names, or statistics of them (:mod:`bqjax.sensitivity.gradient_stats`); only their
        sizes matter. None, or zeros everywhere in a leaf: all weights count the same.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them. A rule's ``setting`` is the leaf's config or its
        number of bits. Leaves of one ``group`` share a codebook. Without rules, leaves of two or more dimensions.
      key: a JAX random key, for the seeds of k-means.
      config: for leaves whose rule has no setting; None is ``GWKConfig()``.
      start: an earlier result whose codebooks to start from, which saves the seeding and most iterations.

    Returns:
      The tree with :class:`bqjax.core.leaves.Clustered` leaves of ``2^bits`` entries, some possibly unused, in the leaves' dtype;
      and a :class:`LeafInfo` for each by name.

    Raises:
      ValueError: more codebook entries than blocks, blocks larger than a row of the weight, weights or gradients that are not
        finite, a missing gradient, a start that does not fit, leaves of one group that differ in setting, block size or dtype;
        whatever :func:`bqjax.core.rules.select` refuses. The message names the leaf.

    Example:
      >>> params = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 16, 16)), "bias": jnp.zeros(16)}
      >>> grads = jax.tree.map(jnp.ones_like, params)
      >>> tree, info = gwk_cluster(params, grads, key=jax.random.key(1))
      >>> tree["kernel"].codebook.shape, round(info["kernel"].bits_per_weight, 3)
      ((32, 6), 1.5)
    """
    leaves, taken = named_leaves(params), select(params, rules).taken
    gradients = None if grads is None else named_leaves(grads)
    starts = None if start is None else named_leaves(start)
    jobs = _jobs(leaves, taken, config or GWKConfig())
    waiting: dict[tuple[int, int], dict[str, tuple[Any, ...]]] = {}
    for i, (first, job) in enumerate(jobs.items()):
        arguments = *_points(job, leaves, gradients), _start(job, starts), jax.random.fold_in(key, i)
        waiting.setdefault((job.k, job.setting.iterations), {})[first] = arguments

    clustered: dict[str, Clustered] = {}
    info: dict[str, LeafInfo] = {}
    for (k, iterations), together in waiting.items():
        for first, (result, used) in by_shape(_clusterer(k, iterations), together).items():
            job, x, mask = jobs[first], together[first][0], together[first][2]
            made = _clustered_leaves(job, leaves, result, x, mask)
            clustered.update(made)
            bits = bits_per_weight(made)
            info.update({name: LeafInfo(result.mse, used, result.repaired, result.iterations, bits) for name in job.names})
    return replace(params, clustered), {name: info[name] for name in taken}


def _points(
    job: _Job, leaves: Mapping[str, Any], gradients: Mapping[str, Any] | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Blocks of a job's leaves, their weights, and which entries are real where not all are."""
    setting, first = job.setting, job.names[0]
    parts = [leaf_blocks(name, leaves[name], job.d) for name in job.names]
    x, real = _joined([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    if job.k > len(x):
        most = int(math.log2(len(x)))
        raise ValueError(
            f"leaf {first!r} has {len(x)} blocks of {job.d}, fewer than the {job.k} codebook entries of {setting.bits} bits: "
            f"give it at most {most} bits, Rule({first!r}, {most}), smaller blocks, or skip it, Rule({first!r}, skip=True)"
        )
    w = _joined([block_weights(_gradient(n, leaves[n], gradients, setting), job.d, setting.weighting) for n in job.names])
    x, w = gathered([x, w])
    return x, w, None if real.all() else jnp.asarray(real)


def _clustered_leaves(
    job: _Job, leaves: Mapping[str, Any], result: VectorKMeans, x: jax.Array, mask: jax.Array | None
) -> dict[str, Clustered]:
    """A job's leaves by name, from the codebook and the indices of all their blocks ``x``."""
    dtype = leaves[job.names[0]].dtype
    codebook, indices = result.codebook.astype(dtype), result.indices
    if jnp.finfo(dtype).bits < 32 and job.setting.weighting != "coordinate":
        # Rounding to a shorter type moves entries: each block goes to the nearest of those that the leaf really holds.
        indices = nearest_block(x, codebook.astype(jnp.float32), mask=mask)
    shapes = {name: np.shape(leaves[name]) for name in job.names}
    ends = np.cumsum([block_mask(s, output_first(len(s)), job.d).shape[0] for s in shapes.values()])
    made = {}
    for name, part in zip(job.names, jnp.split(indices, ends[:-1]) if len(ends) > 1 else [indices], strict=True):
        order = output_first(len(shapes[name]))
        part, entries = (beside(leaves[name], each) for each in (part.astype(index_dtype(job.k)), codebook))
        made[name] = Clustered(part, entries, shapes[name], dtype, order, group=job.group)
    return made
