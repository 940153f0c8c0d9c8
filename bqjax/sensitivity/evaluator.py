"""Evaluation of a network under many perturbations of a few leaves: the engine behind every search and sweep.

For the leaves that are perturbed, the score is split once into a prefix and a suffix (:mod:`bqjax.sensitivity.slicing`).
A batch then costs one prefix, and one suffix a candidate. Candidates are spread over the devices of a mesh; each
device works through its own in a loop whose length is not compiled in, so that all calls for a leaf share one
executable. The devices may be those of several processes (:mod:`bqjax.sensitivity.processes`).

What is compiled is in :mod:`bqjax.sensitivity.programs`, what is kept from call to call in
:mod:`bqjax.sensitivity.prefixes`, what runs on a device in :mod:`bqjax.sensitivity.candidates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bqjax.core.scoring import mean_metrics
from bqjax.core.task import Score
from bqjax.core.tree import named_leaves
from bqjax.sensitivity import processes as hosts
from bqjax.sensitivity.candidates import deal
from bqjax.sensitivity.perturb import Perturbation
from bqjax.sensitivity.prefixes import Prefixes
from bqjax.sensitivity.programs import Predict, Prepared, Programs, checked_score

__all__ = ["Evaluator", "Measured", "Reached"]

_AXIS = "candidates"


class Reached(NamedTuple):
    """What the network computes up to where some leaves are first used.

    Attributes:
      names: the leaves.
      batches: of each batch what the rest of the network needs.
    """

    names: tuple[str, ...]
    batches: list[list[jax.Array]]


class _Call(NamedTuple):
    """What all batches of a call share: the leaves that stay, prefixes where given, the last arguments of ``score_candidates``."""

    perturbation: Perturbation
    fixed: list[Any]
    reached: Reached | None
    arguments: tuple[Any, ...]


class Measured(NamedTuple):
    """What candidates were found to be.

    Attributes:
      metrics: of each candidate, means over the examples.
      parts: ``[candidates, n]`` float32, what each example adds to the sum of the evaluator's metric, examples in the order of
        the batches, padding left out; None without predictions.
      total: what the sums are divided by.
    """

    metrics: list[dict[str, float]]
    parts: np.ndarray | None
    total: float


class Evaluator:
    """A score, the batches it is taken on, and the compiled functions that take it under perturbations.

    Args:
      score: see :data:`bqjax.core.task.Score`.
      batches: non-empty; batches of one shape share a compilation. Each counts by its number of examples.
      predict: where given, :meth:`measure` tells what each example adds to ``metric``: ``predict(params, batch)`` gives
        :class:`~bqjax.core.task.Predictions`, computed along with the score.
      metric: see ``predict``.
      mesh: devices to spread candidates over, a mesh of one axis; None takes the one that ``jax.default_device`` names, or else
        all, those of the other processes too where ``jax.distributed`` has joined several. All of these then make the same calls
        with the same arguments, and all get the same numbers. A mesh of this process's devices works without the others.
      group: candidates that a device evaluates at a time, by ``vmap``, at their multiple of memory. None takes up to 8, but 1
        on CPU where a convolution or a loop lies behind the leaf. The numbers of different groups agree to rounding.
      cache_bytes: what the prefixes of the last perturbed leaves may take, so that a next call for the same leaves
        does not compute them again.

    Attributes:
      shared: whether other processes take part in each call.
      n_devices: of the mesh.

    Raises:
      ValueError: no batches, or a mesh that leaves out some of the processes.
    """

    def __init__(
        self,
        score: Score,
        batches: Sequence[Any],
        *,
        predict: Predict | None = None,
        metric: str = "accuracy",
        mesh: Mesh | None = None,
        group: int | None = None,
        cache_bytes: int = 2**30,
    ):
        if not len(batches):
            raise ValueError("no batches to score on: the calibration data holds no examples")
        if group is not None and group < 1:
            raise ValueError(f"group must be at least 1, got {group}")
        checked = checked_score(score, predict, metric)
        self._plain = jax.jit(checked)
        self._batches = list(batches)
        self._mesh = mesh if mesh is not None else hosts.default_mesh(_AXIS)
        self.n_devices = self._mesh.size
        self.shared = hosts.is_shared(self._mesh)
        self._group = group
        self._programs = Programs(checked, self._mesh)
        self._prefixes = Prefixes(self._mesh, cache_bytes)
        self._counted: list[Any] | None = None  # which examples of each batch are no padding

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling."""
        return self._programs.compile_seconds

    def baseline(self, params: Any) -> dict[str, float]:
        """Metrics of ``params`` as they are, means over all examples.

        Raises:
          ValueError: a metric is NaN or infinite, is not a scalar, or no example was counted.
        """
        return self.measure_baseline(params).metrics[0]

    def measure_baseline(self, params: Any) -> Measured:
        """As :meth:`baseline`, with the examples' parts ``[1, n]`` where there are predictions."""
        # All batches are dispatched before the first result is waited for.
        results = hosts.fetch([self._plain(params, batch) for batch in self._batches])
        for metric, value in self._means(results)[0].items():
            if not math.isfinite(value):
                raise ValueError(f"the score's {metric!r} is {value} on the unperturbed network: repair the network or the score")
        # Padding is that of the unperturbed network: a perturbation does not change which examples count.
        self._counted = [None if own is None else np.asarray(own[1]) for _, _, own in results]
        return self._whole(params, results)

    def measure_whole(self, params: Any) -> Measured:
        """As :meth:`measure_baseline`, of perturbed parameters: metrics may be NaN, and padding is the baseline's."""
        return self._whole(params, hosts.fetch([self._plain(params, batch) for batch in self._batches]))

    def _whole(self, params: Any, results: Sequence[Any]) -> Measured:
        metrics, count = self._means(results)
        parts = None
        if results[0][2] is not None:
            own = [own[0][keep] for (_, _, own), keep in zip(results, self.padding(params), strict=True)]
            parts = self._gathered(np.concatenate(own))[None]
        return Measured([{metric: float(value) for metric, value in metrics.items()}], parts, float(count))

    def padding(self, params: Any) -> list[Any]:
        """Of each batch which examples count ``[n]``, as the first network says that is asked: the unperturbed one."""
        if self._counted is None:
            self.measure_baseline(params)
        return self._counted or []

    def batch_metrics(self, params: Any) -> list[tuple[dict[str, float], float]]:
        """Metrics of ``params`` on each batch by itself, and what its sums are divided by; 0 of a batch that is all padding."""
        found = []
        for sums, count, _ in hosts.fetch([self._plain(params, batch) for batch in self._batches]):
            own = self._gathered(np.array([float(count), *map(float, sums.values())]))
            found.append(({metric: float(x / max(own[0], 1.0)) for metric, x in zip(sums, own[1:], strict=True)}, float(own[0])))
        return found

    def scores(
        self,
        params: Any,
        names: Sequence[str],
        perturbation: Perturbation,
        candidates: Sequence[Any],
        *,
        context: Mapping[str, Any] | None = None,
    ) -> list[dict[str, float]]:
        """Metrics under each candidate, which perturbs all the named leaves and nothing else; see :meth:`measure`."""
        return self.measure(params, names, perturbation, candidates, context=context).metrics

    def measure(
        self,
        params: Any,
        names: Sequence[str],
        perturbation: Perturbation,
        candidates: Sequence[Any],
        *,
        context: Mapping[str, Any] | None = None,
        only: Sequence[int] | None = None,
        reached: Reached | None = None,
    ) -> Measured:
        """Metrics under each candidate, and each example's part in one of them where there are predictions.

        A candidate with a key gives each of several leaves its own noise. The same numbers come out on any number of
        devices.

        Args:
          params: parameters.
          names: the leaves.
          perturbation: what is done to them.
          candidates: pytrees of equal structure, shapes and dtypes.
          context: where given, ``context[name]`` is the third argument of the perturbation of a leaf (its gradient, say).
          only: numbers of the batches that are looked at; None takes all. One that counts no example is an error.
          reached: :meth:`reach` of the same leaves, for parameters that differ in these alone; None computes it, or has it from
            the last call.

        Raises:
          ValueError: no candidates, a leaf that does not exist or is named twice, or ``reached`` for other leaves.
        """
        names, leaves = tuple(names), named_leaves(params)
        _check(names, leaves, candidates)
        fixed = [leaf for name, leaf in leaves.items() if name not in names]
        if reached is None:
            self._prefixes.forget_unless(names, fixed)
        elif reached.names != names:
            raise ValueError(f"reached is for {', '.join(reached.names)}, not for {', '.join(names)}")
        chosen = list(range(len(self._batches))) if only is None else list(only)
        prepared = [self._programs.prepare(params, names, self._batches[i]) for i in chosen]
        varying = [leaves[name] for name in names]
        extra = None if context is None else [context[name] for name in names]
        group = self._group or prepared[0].group(varying)
        stacked, counts, places = deal(candidates, self._mesh.size, group)
        if self._mesh.size > 1:
            varying, extra = self._prefixes.on_devices((varying, extra))
            stacked, counts = jax.tree.map(partial(hosts.dealt, self._mesh), (stacked, counts))
        call = _Call(perturbation, fixed, reached, (varying, extra, stacked, counts))
        if only is None and self._fit_together(prepared, fixed):
            results = self._together(prepared[0], call)
        else:
            results = hosts.fetch([self._one(i, own, call) for i, own in zip(chosen, prepared, strict=True)])
        means, count = self._means(results)
        means = {metric: value.reshape(-1)[places] for metric, value in means.items()}
        metrics = [{metric: float(value[i]) for metric, value in means.items()} for i in range(len(candidates))]
        return Measured(metrics, self._parts(params, results, chosen, places), float(np.max(count)))

    def reach(self, params: Any, names: Sequence[str], after: Reached | None = None) -> Reached:
        """The network up to where it first uses the named leaves: what :meth:`measure` begins with.

        Args:
          params: parameters.
          names: leaves.
          after: the same for leaves that are used earlier, from which the computation goes on; ``params`` may differ in those
            leaves from what they were there, and in nothing else.
        """
        names, leaves = tuple(names), named_leaves(params)
        found = []
        for i, batch in enumerate(self._batches):
            prepared, inputs = self._programs.prepare(params, names, batch), jax.tree.leaves(batch)
            if after is None:
                fixed = [leaf for name, leaf in leaves.items() if name not in names]
                kept = prepared.prefix(prepared.constants, [*fixed, *inputs])
            else:
                onwards = self._programs.onwards(self._programs.prepare(params, after.names, batch), prepared)
                kept = onwards(after.batches[i], prepared.constants, [*leaves.values(), *inputs])
            found.append(kept)
        return Reached(names, found)

    def depends_on(self, params: Any, name: str) -> bool:
        """Whether the score depends on a leaf at all."""
        return not self._programs.prepare(params, (name,), self._batches[0]).parts.unused

    def suffix_operations(self, params: Any, name: str) -> float:
        """Operations from a leaf's first use to the end: of two leaves in a row the one with more is used earlier."""
        return self._programs.prepare(params, (name,), self._batches[0]).parts.suffix_operations

    def one_at_a_time(self, params: Any, name: str) -> bool:
        """Whether candidates for a leaf are evaluated one after the other."""
        own = [named_leaves(params)[name]]
        return (self._group or self._programs.prepare(params, (name,), self._batches[0]).group(own)) == 1

    def forget(self) -> None:
        """Drops what was kept from earlier calls besides compiled functions."""
        self._prefixes.forget()

    def _fit_together(self, prepared: Sequence[Prepared], fixed: Sequence[Any]) -> bool:
        """Whether all batches have one shape and their prefixes, once more for stacking them, fit into the cache."""
        if len(prepared) == 1 or any(p is not prepared[0] for p in prepared):
            return False
        inputs = jax.tree.leaves(self._batches[0])
        kept = jax.eval_shape(prepared[0].parts.prefix, prepared[0].constants, [*fixed, *inputs])
        size = sum(math.prod(k.shape) * k.dtype.itemsize for k in kept) + sum(np.asarray(x).nbytes for x in inputs)
        return 2 * size * len(prepared) <= self._prefixes.cache_bytes

    def _together(self, prepared: Prepared, call: _Call) -> list[Any]:
        """Sums and counts of all batches from one program.

        A perturbation is made once for all of them: on a large leaf it costs more than what lies behind the leaf.
        """

        def stacked() -> Any:
            inputs = [jax.tree.leaves(batch) for batch in self._batches]
            known = call.reached.batches if call.reached else None
            kept = known or [prepared.prefix(prepared.constants, [*call.fixed, *own]) for own in inputs]
            return jax.tree.map(lambda *xs: jnp.stack(xs), *zip(kept, inputs, strict=True))

        kept, batches = self._prefixes.on_devices(stacked()) if call.reached else self._prefixes.joint(stacked)
        constants, fixed = map(self._prefixes.remembered, (prepared.constants, call.fixed))
        suffix = self._programs.suffix(prepared, call.perturbation, joint=True)
        out = hosts.fetch(suffix(kept, constants, [fixed, batches], *call.arguments))
        # Batches are the axis behind those of the candidates: [devices, groups, group, batches, ...].
        return [jax.tree.map(lambda x, b=b: x[:, :, :, b], out) for b in range(len(self._batches))]

    def _one(self, i: int, prepared: Prepared, call: _Call) -> Any:
        """Sums and counts of one batch."""
        inputs = jax.tree.leaves(self._batches[i])
        if call.reached is None:
            kept = self._prefixes.alone(i, lambda: prepared.prefix(prepared.constants, [*call.fixed, *inputs]))
        else:
            kept = self._prefixes.on_devices(call.reached.batches[i])
        constants, fixed = map(self._prefixes.remembered, (prepared.constants, call.fixed))
        suffix = self._programs.suffix(prepared, call.perturbation, joint=False)
        return suffix(kept, constants, [*fixed, *self._prefixes.on_devices(inputs)], *call.arguments)

    def _means(self, results: Sequence[Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Metrics over some batches and their counts, from what this process and the others have."""
        return mean_metrics([(sums, count) for sums, count, _ in results], gather=self._gathered)

    def _parts(self, params: Any, results: Sequence[Any], chosen: Sequence[int], places: np.ndarray) -> np.ndarray | None:
        """``[candidates, n]`` of the examples that count."""
        if results[0][2] is None:
            return None
        counted = self.padding(params)
        own = [np.asarray(parts[0])[..., counted[i]] for i, (_, _, parts) in zip(chosen, results, strict=True)]
        whole = np.concatenate(own, axis=-1)  # [devices, groups, group, n]
        whole = self._gathered(whole[None])[0]
        return whole.reshape(-1, whole.shape[-1])[places]

    def _gathered(self, sums: np.ndarray) -> np.ndarray:
        if not self.shared:
            return sums
        return hosts.from_owners(self._mesh, sums) if sums.ndim > 1 else hosts.from_first(sums)


def _check(names: tuple[str, ...], leaves: Mapping[str, Any], candidates: Sequence[Any]) -> None:
    missing = [name for name in names if name not in leaves]
    if missing:
        raise ValueError(f"no leaf is named {missing[0]!r}; the leaves are {', '.join(leaves)}")
    if len(set(names)) < len(names):
        raise ValueError(f"each leaf can be named once, got {', '.join(names)}")
    if not len(candidates):
        raise ValueError("no candidates to score")
