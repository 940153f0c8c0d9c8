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
from bqjax.sensitivity.programs import Prepared, Programs, checked_score

__all__ = ["Evaluator"]

_AXIS = "candidates"


class _Call(NamedTuple):
    """What all batches of a call share: the leaves that stay, and the last arguments of ``score_candidates``."""

    perturbation: Perturbation
    fixed: list[Any]
    arguments: tuple[Any, ...]


class Evaluator:
    """A score, the batches it is taken on, and the compiled functions that take it under perturbations.

    Args:
      score: see :data:`bqjax.core.task.Score`.
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
        checked = checked_score(score)
        self._plain = jax.jit(checked)
        self._batches = list(batches)
        self._mesh = mesh if mesh is not None else hosts.default_mesh(_AXIS)
        self.shared = hosts.is_shared(self._mesh)
        self._group = group
        self._programs = Programs(checked, self._mesh)
        self._prefixes = Prefixes(self._mesh, cache_bytes)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling."""
        return self._programs.compile_seconds

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
        names, leaves = tuple(names), named_leaves(params)
        _check(names, leaves, candidates)
        fixed = [leaf for name, leaf in leaves.items() if name not in names]
        self._prefixes.forget_unless(names, fixed)
        prepared = [self._programs.prepare(params, names, batch) for batch in self._batches]
        varying = [leaves[name] for name in names]
        extra = None if context is None else [context[name] for name in names]
        group = self._group or prepared[0].group(varying)
        stacked, counts, places = deal(candidates, self._mesh.size, group)
        if self._mesh.size > 1:
            varying, extra = self._prefixes.on_devices((varying, extra))
            stacked, counts = jax.tree.map(partial(hosts.dealt, self._mesh), (stacked, counts))
        call = _Call(perturbation, fixed, (varying, extra, stacked, counts))
        if self._fit_together(prepared, fixed):
            results = self._together(prepared[0], call)
        else:
            results = [self._one(i, prepared[i], call) for i in range(len(self._batches))]
        means = {metric: value.reshape(-1)[places] for metric, value in self._means(results).items()}
        return [{metric: float(value[i]) for metric, value in means.items()} for i in range(len(candidates))]

    def depends_on(self, params: Any, name: str) -> bool:
        """Whether the score depends on a leaf at all."""
        return not self._programs.prepare(params, (name,), self._batches[0]).parts.unused

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
            kept = [prepared.prefix(prepared.constants, [*call.fixed, *own]) for own in inputs]
            return jax.tree.map(lambda *xs: jnp.stack(xs), *zip(kept, inputs, strict=True))

        kept, batches = self._prefixes.joint(stacked)
        constants, fixed = map(self._prefixes.remembered, (prepared.constants, call.fixed))
        suffix = self._programs.suffix(prepared, call.perturbation, joint=True)
        out = hosts.fetch(suffix(kept, constants, [fixed, batches], *call.arguments))
        return [jax.tree.map(lambda x, b=b: x[..., b], out) for b in range(len(self._batches))]

    def _one(self, i: int, prepared: Prepared, call: _Call) -> Any:
        """Sums and counts of one batch."""
        inputs = jax.tree.leaves(self._batches[i])
        kept = self._prefixes.alone(i, lambda: prepared.prefix(prepared.constants, [*call.fixed, *inputs]))
        constants, fixed = map(self._prefixes.remembered, (prepared.constants, call.fixed))
        suffix = self._programs.suffix(prepared, call.perturbation, joint=False)
        return suffix(kept, constants, [*fixed, *self._prefixes.on_devices(inputs)], *call.arguments)

    def _means(self, results: Sequence[tuple[dict[str, jax.Array], jax.Array]]) -> dict[str, np.ndarray]:
        """Metrics over all batches, from what this process and the others have."""
        return mean_metrics(hosts.fetch(list(results)), gather=self._gathered)[0]

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
