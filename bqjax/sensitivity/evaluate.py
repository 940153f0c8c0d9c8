"""Scores of a network under many perturbations of a few leaves: the engine behind every search and sweep.

For the leaves that are perturbed, the score is split once into a prefix and a suffix (:mod:`bqjax.sensitivity.slicing`).
A batch then costs one prefix, and one suffix a candidate. Candidates are spread over the devices of a mesh; each
device works through its own in a loop whose length is not compiled in, so that all calls for a leaf share one
executable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bqjax.sensitivity.perturb import NoiseCandidate, Perturbation
from bqjax.sensitivity.slicing import Program, Split, split, trace
from bqjax.tree import named_leaves

__all__ = ["Evaluator", "Score", "signed"]

Score = Callable[[Any, Any], tuple[Any, Any]]
"""``score(params, batch) -> (sums, count)``: a dict of scalars summed over the batch's examples (or one scalar, which is
then called ``"score"``), and the number of examples. Traceable: it may run under ``jit``, ``vmap`` and ``grad``."""

_AXIS = "candidates"
_LEAST_SLOTS = 5  # as a power of two


def signed(metrics: Mapping[str, Any], name: str) -> Any:
    """A metric by name as something to maximise: ``"-loss"`` is minus the entry ``"loss"``.

    Raises:
      ValueError: no metric of this name.
    """
    key = name.removeprefix("-")
    if key not in metrics:
        raise ValueError(f"the score has no metric {key!r}, only {', '.join(metrics)}")
    return -metrics[key] if name.startswith("-") else metrics[key]


def _as_metrics(score: Score) -> Score:
    """The score with a dict of scalar sums whatever it returned, checked while it is traced."""

    def checked(params: Any, batch: Any) -> tuple[dict[str, jax.Array], jax.Array]:
        sums, count = score(params, batch)
        sums = dict(sums) if isinstance(sums, Mapping) else {"score": sums}
        for metric, value in [*sums.items(), ("count", count)]:
            if jnp.shape(value):
                raise ValueError(f"the score's {metric!r} must be a scalar sum over the batch, got shape {jnp.shape(value)}")
        return {metric: jnp.asarray(value, jnp.float32) for metric, value in sums.items()}, jnp.asarray(count, jnp.float32)

    return checked


class Evaluator:
    """A score, the batches it is taken on, and the compiled functions that take it.

    Args:
      score: see :data:`Score`.
      batches: non-empty; batches of one shape share a compilation. Each counts by its number of examples.
      mesh: devices to spread candidates over, a mesh of one axis; None takes all devices of this process.
      group: candidates that a device evaluates at a time, by ``vmap``. 1 is best on CPU, where the grouped
        convolutions that ``vmap`` makes are slow; larger groups fill a GPU or TPU, at their multiple of memory.
        None takes 1 on CPU and 8 elsewhere.
      cache_bytes: what the prefixes of the last perturbed leaves may take, so that a next call for the same leaves
        does not compute them again.

    Raises:
      ValueError: no batches.
    """

    def __init__(
        self,
        score: Score,
        batches: Sequence[Any],
        *,
        mesh: Mesh | None = None,
        group: int | None = None,
        cache_bytes: int = 2**30,
    ):
        if not len(batches):
            raise ValueError("no batches to score on: the calibration data holds no examples")
        if group is not None and group < 1:
            raise ValueError(f"group must be at least 1, got {group}")
        self._score = _as_metrics(score)
        self._plain = jax.jit(self._score)
        self._batches = list(batches)
        self._mesh = mesh if mesh is not None else Mesh(np.array(jax.local_devices()), (_AXIS,))
        self._group = group or (1 if jax.default_backend() == "cpu" else 8)
        self._cache_bytes = cache_bytes
        self._programs: dict[Any, Program] = {}
        self._splits: dict[Any, tuple[Split, Any, dict[Perturbation, Any]]] = {}
        self._kept: dict[int, list[jax.Array]] = {}
        self._kept_for: tuple[tuple[str, ...], list[Any]] = ((), [])
        self.compile_seconds = 0.0

    def baseline(self, params: Any) -> dict[str, float]:
        """Metrics of ``params`` as they are, means over all examples.

        Raises:
          ValueError: a metric is NaN or infinite, is not a scalar, or no example was counted.
        """
        # All batches are dispatched before the first result is waited for.
        metrics = self._means([self._plain(params, batch) for batch in self._batches])
        for metric, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"the score's {metric!r} is {value} on the unperturbed network: repair the network or the score")
        return {metric: float(value) for metric, value in metrics.items()}

    def scores(
        self,
        params: Any,
        names: Sequence[str],
        perturbation: Perturbation,
        candidates: Sequence[Any],
        *,
        context: Mapping[str, Any] | None = None,
    ) -> list[dict[str, float]]:
        """Metrics under each candidate, which perturbs all the named leaves and nothing else.

        A candidate with a key gives each of several leaves its own noise. The same numbers come out on any number of
        devices.

        Args:
          params: parameters.
          names: the leaves.
          perturbation: what is done to them.
          candidates: pytrees of equal structure, shapes and dtypes.
          context: where given, ``context[name]`` is the third argument of the perturbation of a leaf (its gradient, say).

        Raises:
          ValueError: no candidates, or a leaf that does not exist.
        """
        names = tuple(names)
        leaves = named_leaves(params)
        missing = [name for name in names if name not in leaves]
        if missing:
            raise ValueError(f"no leaf is named {missing[0]!r}; the leaves are {', '.join(leaves)}")
        if not len(candidates):
            raise ValueError("no candidates to score")
        varying = [leaves[name] for name in names]
        fixed_leaves = [leaf for name, leaf in leaves.items() if name not in names]
        self._forget_unless(names, fixed_leaves)
        stacked, counts, places = self._spread(candidates)
        results = []
        for i, batch in enumerate(self._batches):
            parts, prefix, suffix = self._functions(params, names, perturbation, batch)
            constants, fixed = list(parts.program.constants.values()), [*fixed_leaves, *jax.tree.leaves(batch)]
            kept = self._kept.get(i)
            if kept is None:
                kept = prefix(constants, fixed)
                if sum(k.nbytes for ks in (kept, *self._kept.values()) for k in ks) <= self._cache_bytes:
                    self._kept[i] = kept
            extra = None if context is None else [context[name] for name in names]
            results.append(suffix(kept, constants, fixed, varying, extra, stacked, counts))
        means = {metric: value.reshape(-1)[places] for metric, value in self._means(results).items()}
        return [{metric: float(value[i]) for metric, value in means.items()} for i in range(len(candidates))]

    def depends_on(self, params: Any, name: str) -> bool:
        """Whether the score depends on a leaf at all."""
        return any(not self._split(params, (name,), batch)[0].unused for batch in self._batches[:1])

    def _forget_unless(self, names: tuple[str, ...], fixed: list[Any]) -> None:
        """Drops kept prefixes unless they are for these leaves and values of the other leaves."""
        # Compared by identity; the arrays are held here, so that no address is used twice.
        old_names, old = self._kept_for
        if old_names != names or len(old) != len(fixed) or any(a is not b for a, b in zip(old, fixed, strict=True)):
            self._kept, self._kept_for = {}, (names, fixed)

    def _spread(self, candidates: Sequence[Any]) -> tuple[Any, np.ndarray, np.ndarray]:
        """Candidates as arrays ``[devices, groups, group, ...]``, the groups in use on each device, and where each went.

        The number of groups is rounded up to a power of two, so that few different sizes are compiled; the ones added
        are never evaluated, and take a few numbers each.
        """
        n_devices, group = self._mesh.size, self._group
        per_device = -(-len(candidates) // n_devices)
        groups = 1 << max(_LEAST_SLOTS, math.ceil(math.log2(-(-per_device // group))))
        index = np.arange(len(candidates))
        device, slot = index % n_devices, index // n_devices  # dealt out in turn, so that all have nearly the same
        places = (device * groups + slot // group) * group + slot % group
        source = np.zeros(n_devices * groups * group, np.int64)
        source[places] = index
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *candidates)
        stacked = jax.tree.map(lambda x: x[source].reshape(n_devices, groups, group, *x.shape[1:]), stacked)
        counts = -(-np.bincount(device, minlength=n_devices) // group)
        return stacked, counts.astype(np.int32), places

    def _split(self, params: Any, names: tuple[str, ...], batch: Any) -> tuple[Split, Any, dict[Perturbation, Any]]:
        """The split score for batches of this shape, its compiled prefix, and its suffixes by perturbation."""
        leaves = named_leaves(params)
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in (*leaves.values(), *jax.tree.leaves(batch)))
        structure = (jax.tree.structure((params, batch)), shapes)
        if structure not in self._programs:
            self._programs[structure] = trace(self._score, params, batch)
        if (structure, names) not in self._splits:
            positions = list(leaves)
            parts = split(self._programs[structure], [positions.index(name) for name in names])
            self._splits[structure, names] = parts, _Timed(parts.prefix, self), {}
        return self._splits[structure, names]

    def _functions(self, params: Any, names: tuple[str, ...], perturbation: Perturbation, batch: Any) -> tuple[Split, Any, Any]:
        """The split score, its compiled prefix, and its suffix compiled for this perturbation."""
        parts, prefix, suffixes = self._split(params, names, batch)
        if perturbation not in suffixes:
            # The split takes the varying leaves in the tree's order.
            order = [names.index(name) for name in named_leaves(params) if name in names]
            suffixes[perturbation] = _Timed(partial(_sweep, self._mesh, parts, perturbation, order), self)
        return parts, prefix, suffixes[perturbation]

    @staticmethod
    def _means(results: Sequence[tuple[dict[str, jax.Array], jax.Array]]) -> dict[str, np.ndarray]:
        """Sums and counts of the batches, added in float64, as means."""
        fetched = jax.device_get(list(results))
        count = np.sum([np.asarray(n, np.float64) for _, n in fetched], axis=0)
        totals = {metric: np.sum([np.asarray(s[metric], np.float64) for s, _ in fetched], axis=0) for metric in fetched[0][0]}
        if not np.max(count) > 0:
            raise ValueError("the score counted no examples in any batch")
        # Slots that were never evaluated counted nothing.
        return {metric: total / np.where(count > 0, count, 1.0) for metric, total in totals.items()}


class _Timed:
    """A function compiled once for each set of argument shapes; its evaluator is told how long that took."""

    def __init__(self, function: Callable[..., Any], evaluator: Evaluator):
        self._jitted, self._evaluator = jax.jit(function), evaluator
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        shapes = structure, tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves)
        if shapes not in self._compiled:
            start = time.monotonic()
            self._compiled[shapes] = self._jitted.lower(*args).compile()
            self._evaluator.compile_seconds += time.monotonic() - start
        return self._compiled[shapes](*args)


def _sweep(
    mesh: Mesh,
    parts: Split,
    perturbation: Perturbation,
    order: Sequence[int],
    kept: Any,
    constants: Any,
    fixed: Any,
    varying: Any,
    context: Any,
    candidates: Any,
    counts: Any,
) -> Any:
    """Sums and counts ``[devices, groups, group]`` of one batch under all candidates."""

    def one(kept: Any, constants: Any, fixed: Any, varying: Any, context: Any, candidate: Any) -> Any:
        new = []
        for i, leaf in enumerate(varying):
            own = candidate
            if isinstance(candidate, NoiseCandidate) and len(varying) > 1:
                own = candidate._replace(key=jax.random.fold_in(candidate.key, i))
            new.append(perturbation(leaf, own) if context is None else perturbation(leaf, own, context[i]))  # type: ignore[call-arg]
        return parts.suffix(kept, constants, fixed, [new[i] for i in order])

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
