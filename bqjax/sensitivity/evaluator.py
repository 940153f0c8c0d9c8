"""Scores of a network under many perturbations of a few leaves: the engine behind every search and sweep.

For the leaves that are perturbed, the score is split once into a prefix and a suffix (:mod:`bqjax.sensitivity.slicing`).
A batch then costs one prefix, and one suffix a candidate. Candidates are spread over the devices of a mesh; each
device works through its own in a loop whose length is not compiled in, so that all calls for a leaf share one
executable. The devices may be those of several processes (:mod:`bqjax.sensitivity.processes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bqjax.core.task import Score
from bqjax.core.tree import named_leaves
from bqjax.sensitivity import processes as hosts
from bqjax.sensitivity.candidates import Timed, score_candidates
from bqjax.sensitivity.perturb import Perturbation
from bqjax.sensitivity.slicing import Program, Split, split, trace

__all__ = ["Evaluator"]

"""``score(params, batch) -> (sums, count)``: a dict of scalars summed over the batch's examples (or one scalar, which is
then called ``"score"``), and the number of examples. Traceable: it may run under ``jit``, ``vmap`` and ``grad``."""

_AXIS = "candidates"
_LEAST_SLOTS = 5  # as a power of two
_LARGEST_GROUP = 8
_GROUP_BYTES = 2**28  # of perturbed leaves
# What vmap refuses by default, and what it makes slow on CPU: vmap over a kernel gives a grouped convolution.
_ALONE = frozenset({"pure_callback", "io_callback"})
_ALONE_ON_CPU = frozenset({"conv_general_dilated", "scan", "while", "cond"})
_NEEDS_A_NUMBER = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _as_metrics(score: Score) -> Score:
    """The score with a dict of scalar sums whatever it returned, checked while it is traced."""

    def checked(params: Any, batch: Any) -> tuple[dict[str, jax.Array], jax.Array]:
        try:
            result = score(params, batch)
        except _NEEDS_A_NUMBER as error:
            raise ValueError(
                "the score must be traceable by JAX, but it needs the value of an array while it is traced: use jax.numpy on "
                f"it, not float(), int(), bool(), `if` or NumPy. {str(error).splitlines()[0]}"
            ) from error
        if not (isinstance(result, (tuple, list)) and len(result) == 2):
            raise ValueError(f"the score must return a pair (sums, count), got {type(result).__name__}")
        sums, count = result
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
      mesh: devices to spread candidates over, a mesh of one axis; None takes the one that ``jax.default_device`` names, or else
        all, those of the other processes too where ``jax.distributed`` has joined several. All of these then make the same calls
        with the same arguments, and all get the same numbers. A mesh of this process's devices works without the others.
      group: candidates that a device evaluates at a time, by ``vmap``, at their multiple of memory. None takes up to 8, but 1
        on CPU where a convolution or a loop lies behind the leaf. The numbers of different groups agree to rounding.
      cache_bytes: what the prefixes of the last perturbed leaves may take, so that a next call for the same leaves
        does not compute them again.

    Attributes:
      shared: whether other processes take part in each call.

    Raises:
      ValueError: no batches, or a mesh that leaves out some of the processes.
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
        self._mesh = mesh if mesh is not None else hosts.default_mesh(_AXIS)
        self.shared = hosts.is_shared(self._mesh)
        self._group = group
        self._cache_bytes = cache_bytes
        self._programs: dict[Any, Program] = {}
        self._splits: dict[Any, tuple[Split, Timed, dict[tuple[Perturbation, bool], Timed]]] = {}
        self._kept: dict[int, list[jax.Array]] = {}
        self._joint: Any = None
        self._kept_for: tuple[tuple[str, ...], list[Any]] = ((), [])
        self._global: dict[int, tuple[Any, jax.Array]] = {}

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling."""
        timed = [f for _, prefix, suffixes in self._splits.values() for f in (prefix, *suffixes.values())]
        return sum((f.compile_seconds for f in timed), 0.0)

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
          ValueError: no candidates, or a leaf that does not exist or is named twice.
        """
        names = tuple(names)
        leaves = named_leaves(params)
        missing = [name for name in names if name not in leaves]
        if missing:
            raise ValueError(f"no leaf is named {missing[0]!r}; the leaves are {', '.join(leaves)}")
        if len(set(names)) < len(names):
            raise ValueError(f"each leaf can be named once, got {', '.join(names)}")
        if not len(candidates):
            raise ValueError("no candidates to score")
        varying = [leaves[name] for name in names]
        fixed_leaves = [leaf for name, leaf in leaves.items() if name not in names]
        self._forget_unless(names, fixed_leaves)
        extra = None if context is None else [context[name] for name in names]
        group = self._group or self._choose_group(self._split(params, names, self._batches[0])[0], varying)
        stacked, counts, places = self._spread(candidates, group)
        several = self._mesh.size > 1
        if several:
            varying, extra = self._replicated(varying), self._replicated(extra)
            stacked, counts = jax.tree.map(partial(hosts.dealt, self._mesh), (stacked, counts))
        results: list[Any] = []
        if self._fit_together(params, names):
            # A perturbation is made once for all batches: on a large leaf it costs more than what lies behind the leaf.
            parts, prefix, suffix = self._functions(params, names, perturbation, self._batches[0], joint=True)
            constants = list(parts.program.constants.values())
            if self._joint is None:
                kept = [prefix(constants, [*fixed_leaves, *jax.tree.leaves(batch)]) for batch in self._batches]
                self._joint = jax.tree.map(lambda *xs: jnp.stack(xs), *zip(kept, map(jax.tree.leaves, self._batches), strict=True))
                if several:
                    self._joint = self._replicated(self._joint)
            kept_together, batches = self._joint
            if several:
                constants, fixed_leaves = self._remembered(constants), self._remembered(fixed_leaves)
            out = hosts.fetch(suffix(kept_together, constants, [fixed_leaves, batches], varying, extra, stacked, counts))
            results = [jax.tree.map(lambda x, b=b: x[..., b], out) for b in range(len(self._batches))]
        for i, batch in enumerate(self._batches) if not results else ():
            parts, prefix, suffix = self._functions(params, names, perturbation, batch)
            constants, fixed = list(parts.program.constants.values()), [*fixed_leaves, *jax.tree.leaves(batch)]
            kept_alone = self._kept.get(i)
            if kept_alone is None:
                # On one device of each process: computed anew it costs less than sent, and is the same.
                kept_alone = prefix(constants, fixed)
                if several:
                    kept_alone = self._replicated(kept_alone)
                if sum(k.nbytes for ks in (kept_alone, *self._kept.values()) for k in ks) <= self._cache_bytes:
                    self._kept[i] = kept_alone
            if several:
                constants, fixed = (
                    self._remembered(constants),
                    self._remembered(fixed_leaves) + self._replicated(fixed[len(fixed_leaves) :]),
                )
            results.append(suffix(kept_alone, constants, fixed, varying, extra, stacked, counts))
        means = {metric: value.reshape(-1)[places] for metric, value in self._means(results).items()}
        return [{metric: float(value[i]) for metric, value in means.items()} for i in range(len(candidates))]

    @staticmethod
    def _choose_group(parts: Split, varying: Sequence[Any]) -> int:
        """Candidates to evaluate at a time: as many as fill the machine, and as their perturbed leaves have room."""
        alone = _ALONE | _ALONE_ON_CPU if jax.default_backend() == "cpu" else _ALONE
        if parts.suffix_primitives & alone:
            return 1
        size = sum(np.size(leaf) * np.dtype(leaf.dtype).itemsize for leaf in varying)
        return max(1, min(_LARGEST_GROUP, _GROUP_BYTES // max(1, size)))

    def depends_on(self, params: Any, name: str) -> bool:
        """Whether the score depends on a leaf at all."""
        return any(not self._split(params, (name,), batch)[0].unused for batch in self._batches[:1])

    def _forget_unless(self, names: tuple[str, ...], fixed: list[Any]) -> None:
        """Drops kept prefixes unless they are for these leaves and values of the other leaves."""
        # Compared by identity; the arrays are held here, so that no address is used twice.
        old_names, old = self._kept_for
        if old_names != names or len(old) != len(fixed) or any(a is not b for a, b in zip(old, fixed, strict=True)):
            self.forget()
            self._kept_for = names, fixed

    def forget(self) -> None:
        """Drops what was kept from earlier calls besides compiled functions."""
        self._kept, self._joint, self._kept_for, self._global = {}, None, ((), []), {}

    def _fit_together(self, params: Any, names: tuple[str, ...]) -> bool:
        """Whether all batches have one shape and their prefixes, once more for stacking them, fit into the cache."""
        if len(self._batches) == 1 or len({id(self._split(params, names, batch)[0]) for batch in self._batches}) > 1:
            return False
        parts, batch = self._split(params, names, self._batches[0])[0], self._batches[0]
        flat = [*named_leaves(params).values(), *jax.tree.leaves(batch)]
        fixed = [x for i, x in enumerate(flat) if i not in parts.varying]
        kept = jax.eval_shape(parts.prefix, list(parts.program.constants.values()), fixed)
        size = sum(math.prod(k.shape) * k.dtype.itemsize for k in kept) + sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch))
        return 2 * size * len(self._batches) <= self._cache_bytes

    def _replicated(self, tree: Any) -> Any:
        """Arrays that every process has, whole on all devices."""
        return jax.tree.map(partial(hosts.replicated, self._mesh), tree)

    def _remembered(self, arrays: Sequence[Any]) -> list[jax.Array]:
        """The same, without a copy for those of the last call."""
        # Held with their originals, so that no address is used twice.
        for x in arrays:
            if id(x) not in self._global:
                self._global[id(x)] = x, hosts.replicated(self._mesh, x)
        return [self._global[id(x)][1] for x in arrays]

    def _spread(self, candidates: Sequence[Any], group: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """Candidates as arrays ``[devices, groups, group, ...]``, the groups in use on each device, and where each went.

        The number of groups is rounded up to a power of two, so that few different sizes are compiled; the ones added
        are never evaluated, and take a few numbers each.
        """
        n_devices = self._mesh.size
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

    def _split(
        self, params: Any, names: tuple[str, ...], batch: Any
    ) -> tuple[Split, Timed, dict[tuple[Perturbation, bool], Timed]]:
        """The split score for batches of this shape, its compiled prefix, and its suffixes by perturbation."""
        leaves = named_leaves(params)
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in (*leaves.values(), *jax.tree.leaves(batch)))
        structure = (jax.tree.structure((params, batch)), shapes)
        if structure not in self._programs:
            self._programs[structure] = trace(self._score, params, batch)
        if (structure, names) not in self._splits:
            positions = list(leaves)
            parts = split(self._programs[structure], [positions.index(name) for name in names])
            self._splits[structure, names] = parts, Timed(parts.prefix), {}
        return self._splits[structure, names]

    def _functions(
        self, params: Any, names: tuple[str, ...], perturbation: Perturbation, batch: Any, joint: bool = False
    ) -> tuple[Split, Timed, Timed]:
        """The split score, its compiled prefix, and its suffix compiled for this perturbation."""
        parts, prefix, suffixes = self._split(params, names, batch)
        if (perturbation, joint) not in suffixes:
            # The split takes the varying leaves in the tree's order.
            order = [names.index(name) for name in named_leaves(params) if name in names]
            suffixes[perturbation, joint] = Timed(partial(score_candidates, self._mesh, parts, perturbation, order, joint))
        return parts, prefix, suffixes[perturbation, joint]

    def _means(self, results: Sequence[tuple[dict[str, jax.Array], jax.Array]]) -> dict[str, np.ndarray]:
        """Sums and counts of the batches, added in float64, as means."""
        fetched = hosts.fetch(list(results))
        names = list(fetched[0][0])
        sums = np.sum([np.stack([n, *(s[name] for name in names)]).astype(np.float64) for s, n in fetched], axis=0)
        if self.shared:
            sums = hosts.from_owners(self._mesh, sums) if sums.ndim > 1 else hosts.from_first(sums)
        count = sums[0]
        if not np.max(count) > 0:
            raise ValueError("the score counted no examples in any batch")
        # Slots that were never evaluated counted nothing.
        return {name: total / np.where(count > 0, count, 1.0) for name, total in zip(names, sums[1:], strict=True)}
