"""Batched evaluation of candidates, the compiled half of the engine: one batch of data, the devices of a mesh (``shard_map``)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bqjax.sensitivity.perturb import NoiseCandidate, Perturbation
from bqjax.sensitivity.slicing import Split

__all__ = ["Timed", "deal", "score_candidates", "stacked"]

_LEAST_SLOTS = 5  # as a power of two


class Timed:
    """A function compiled once for each set of argument shapes; ``compile_seconds`` says how long that took so far."""

    def __init__(self, function: Callable[..., Any]):
        self._jitted = jax.jit(function)
        self._compiled: dict[Any, Any] = {}
        self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        shapes = structure, tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves)
        if shapes not in self._compiled:
            start = time.monotonic()
            self._compiled[shapes] = self._jitted.lower(*args).compile()
            self.compile_seconds += time.monotonic() - start
        return self._compiled[shapes](*args)


def stacked(xs: Sequence[Any], order: Any = None, shape: Sequence[int] | None = None) -> Any:
    """Arrays of one shape as one.

    Numbers of NumPy and keys are put together by NumPy: a handful of JAX's eager operations takes longer than a small batch does.

    Args:
      xs: not empty.
      order: which of them are taken, ``[n]``; None takes all as they come.
      shape: of the axes in front, in place of ``n``.
    """
    order = np.arange(len(xs)) if order is None else order
    shape = (len(order),) if shape is None else shape
    keys = all(isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in xs)
    if keys:
        data: Any = np.stack([np.asarray(jax.random.key_data(x)) for x in xs])
    elif all(isinstance(x, np.ndarray | np.generic) and jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype for x in xs):
        data = np.stack(xs)
    else:
        data = jnp.stack(xs)
    data = data[order].reshape(*shape, *data.shape[1:])
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(xs[0])) if keys else data


def deal(candidates: Sequence[Any], n_devices: int, group: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Candidates as arrays with a row for each device.

    The number of groups is rounded up to a power of two, so that few different sizes are compiled; the ones added
    are never evaluated, and take a few numbers each.

    Args:
      candidates: pytrees of equal structure, shapes and dtypes.
      n_devices: that they are spread over.
      group: candidates that a device evaluates at a time.

    Returns:
      The candidates' arrays ``[devices, groups, group, ...]``; the number of groups in use on each device, ``[devices]``; and
      where each candidate went in the flattened first three axes, ``[candidates]``.
    """
    per_device = -(-len(candidates) // n_devices)
    groups = 1 << max(_LEAST_SLOTS, math.ceil(math.log2(-(-per_device // group))))
    index = np.arange(len(candidates))
    device, slot = index % n_devices, index // n_devices  # dealt out in turn, so that all have nearly the same
    places = (device * groups + slot // group) * group + slot % group
    source = np.zeros(n_devices * groups * group, np.int64)
    source[places] = index
    arrays = jax.tree.map(lambda *xs: stacked(xs, source, (n_devices, groups, group)), *candidates)
    counts = -(-np.bincount(device, minlength=n_devices) // group)
    return arrays, counts.astype(np.int32), places


def score_candidates(
    mesh: Mesh,
    parts: Split,
    perturbation: Perturbation,
    order: Sequence[int],
    joint: bool,
    kept: Any,
    constants: Any,
    fixed: Any,
    varying: Any,
    context: Any,
    candidates: Any,
    counts: Any,
) -> Any:
    """Sums and counts ``[devices, groups, group]`` of one batch under all candidates.

    Args:
      mesh: of one axis; ``candidates`` and ``counts`` are dealt over it, the rest is whole on each device.
      parts: the split score.
      perturbation: what is done to the leaves.
      order: for each leaf that the suffix takes, its place in ``varying``.
      joint: whether ``kept`` and the batches are those of several batches, stacked, and ``fixed`` is a pair of the fixed
        leaves and the batches. Results then have the batches as their last axis.
      kept, constants, fixed: what the suffix takes besides the varying leaves.
      varying: the leaves as they are.
      context: for each of them the perturbation's third argument, or None.
      candidates: ``[devices, groups, group, ...]``.
      counts: ``[devices]``, groups that are in use.
    """

    def one(kept: Any, constants: Any, fixed: Any, varying: Any, context: Any, candidate: Any) -> Any:
        new = []
        for i, leaf in enumerate(varying):
            own = candidate
            if isinstance(candidate, NoiseCandidate) and len(varying) > 1:
                own = candidate._replace(key=jax.random.fold_in(candidate.key, i))
            new.append(perturbation(leaf, own) if context is None else perturbation(leaf, own, context[i]))  # type: ignore[call-arg]
        ordered = [new[i] for i in order]
        if not joint:
            return parts.suffix(kept, constants, fixed, ordered)
        leaves, batches = fixed
        return jax.lax.map(lambda own: parts.suffix(own[0], constants, [*leaves, *own[1]], ordered), (kept, batches))

    def on_device(kept: Any, constants: Any, fixed: Any, varying: Any, context: Any, candidates: Any, counts: Any) -> Any:
        candidates = jax.tree.map(lambda x: x[0], candidates)
        score = partial(one, kept, constants, fixed, varying, context)
        groups, group = jax.tree.leaves(candidates)[0].shape[:2]

        def score_group(i: Any) -> Any:
            own = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), candidates)
            if group > 1:
                return jax.vmap(score)(own)
            return jax.tree.map(lambda x: x[None], score(jax.tree.map(lambda x: x[0], own)))

        def step(i: Any, out: Any) -> Any:
            return jax.tree.map(lambda o, new: o.at[i].set(new), out, score_group(i))

        out = jax.tree.map(lambda x: jnp.zeros((groups, *x.shape), x.dtype), jax.eval_shape(score_group, 0))
        # The trip count is an argument: a call with fewer candidates runs fewer steps of the same executable.
        return jax.tree.map(lambda x: x[None], jax.lax.fori_loop(0, counts[0], step, out))

    whole, dealt = PartitionSpec(), PartitionSpec(mesh.axis_names[0])
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(whole, whole, whole, whole, whole, dealt, dealt), out_specs=dealt, check_vma=False
    )(kept, constants, fixed, varying, context, candidates, counts)
