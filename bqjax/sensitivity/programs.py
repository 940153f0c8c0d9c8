"""What the engine compiles: a score traced once a shape of batch, split once a set of leaves, compiled once a perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bqjax.core.scoring import example_parts, named_sums
from bqjax.core.task import Predictions, Score
from bqjax.core.tree import named_leaves
from bqjax.sensitivity.candidates import Timed, score_candidates
from bqjax.sensitivity.compiled import Compiled, compiled_for
from bqjax.sensitivity.perturb import Perturbation
from bqjax.sensitivity.slicing import Program, Split, split, trace

__all__ = ["Prepared", "Programs", "checked_score"]

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


Predict = Callable[[Any, Any], Predictions]
Parted = Callable[[Any, Any], tuple[dict[str, jax.Array], jax.Array, Any]]


def checked_score(score: Score, predict: Predict | None = None, metric: str = "") -> Parted:
    """The score with a dict of scalar float32 sums whatever it returned, checked while it is traced.

    Args:
      score: see :data:`bqjax.core.task.Score`.
      predict: where given, a third result says what each example adds to the sum of ``metric``, ``[n]`` float32, 0 for padding,
        and which examples count, ``[n]``; without it the third result is None.
      metric: see ``predict``.

    Raises:
      ValueError: when called, where the score is not traceable, returns no pair, or a sum that is not a scalar; or where
        predictions do not tell of the metric.
    """

    def checked(params: Any, batch: Any) -> tuple[dict[str, jax.Array], jax.Array, Any]:
        try:
            result = score(params, batch)
            said = None if predict is None else predict(params, batch)
        except _NEEDS_A_NUMBER as error:
            raise ValueError(
                "the score must be traceable by JAX, but it needs the value of an array while it is traced: use jax.numpy on "
                f"it, not float(), int(), bool(), `if` or NumPy. {str(error).splitlines()[0]}"
            ) from error
        if not (isinstance(result, (tuple, list)) and len(result) == 2):
            raise ValueError(f"the score must return a pair (sums, count), got {type(result).__name__}")
        sums, count = named_sums(result[0]), result[1]
        for name, value in [*sums.items(), ("count", count)]:
            if jnp.shape(value):
                raise ValueError(f"the score's {name!r} must be a scalar sum over the batch, got shape {jnp.shape(value)}")
        totals = {name: jnp.asarray(value, jnp.float32) for name, value in sums.items()}
        count = jnp.asarray(count, jnp.float32)
        if said is None:
            return totals, count, None
        # Sums of what the predictions say of each example, as far as they do: then a forward pass through loops, which cannot be
        # told to be the score's own, is not made twice.
        own = {name: _counted(pair)[0] for name in totals if (pair := example_parts(said, name)) is not None}
        totals |= {name: jnp.sum(parts) for name, parts in own.items()}
        return totals, count, _parts(said, metric)

    return checked


def _parts(said: Predictions, metric: str) -> tuple[jax.Array, jax.Array]:
    """What each example adds to the sum of a metric, and whether it counts."""
    own = example_parts(said, metric)
    if own is None:
        raise ValueError(
            f"predictions say nothing of each example's {metric.removeprefix('-')!r}, only of "
            f"{', '.join(['accuracy', *said.sums])}: put it into Predictions.sums, or do without predict"
        )
    return _counted(own)


def _counted(own: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    parts, counted = own[0], jnp.asarray(own[1]).astype(bool)
    return jnp.where(counted, jnp.asarray(parts, jnp.float32), 0.0), counted


@dataclass(frozen=True, eq=False)
class Prepared:
    """A score split at some leaves, for batches of one shape.

    Attributes:
      parts: the split score.
      order: for each leaf that the suffix takes, its place among the names that were asked for.
      compiled: its halves, shared with other scores that are the same program.
    """

    parts: Split
    order: tuple[int, ...]
    compiled: Compiled

    @property
    def prefix(self) -> Timed:
        """Compiled, see :meth:`bqjax.sensitivity.slicing.Split.prefix`."""
        return self.compiled.prefix

    @property
    def constants(self) -> list[Any]:
        """What the score closes over."""
        return list(self.parts.program.constants.values())

    def group(self, varying: Sequence[Any]) -> int:
        """Candidates to evaluate at a time: as many as fill the machine, and as their perturbed leaves have room."""
        alone = _ALONE | _ALONE_ON_CPU if jax.default_backend() == "cpu" else _ALONE
        if self.parts.suffix_primitives & alone:
            return 1
        size = sum(np.size(leaf) * np.dtype(leaf.dtype).itemsize for leaf in varying)
        return max(1, min(_LARGEST_GROUP, _GROUP_BYTES // max(1, size)))


class Programs:
    """The traced and compiled forms of one score; equal requests get the same one.

    Args:
      score: from :func:`checked_score`.
      mesh: that candidates are spread over.
    """

    def __init__(self, score: Parted, mesh: Mesh):
        self._score, self._mesh = score, mesh
        self._traced: dict[Any, Program] = {}
        self._prepared: dict[Any, Prepared] = {}
        self._timed: dict[Timed, float] = {}  # with the seconds that others had spent on them

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling since these programs were first asked for."""
        return sum((f.compile_seconds - before for f, before in self._timed.items()), 0.0)

    def prepare(self, params: Any, names: tuple[str, ...], batch: Any) -> Prepared:
        """The score split at the named leaves, for batches of this shape."""
        leaves = named_leaves(params)
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in (*leaves.values(), *jax.tree.leaves(batch)))
        structure = (jax.tree.structure((params, batch)), shapes)
        if structure not in self._traced:
            self._traced[structure] = trace(self._score, params, batch)
        if (structure, names) not in self._prepared:
            positions = list(leaves)
            parts = split(self._traced[structure], [positions.index(name) for name in names])
            # The split takes the varying leaves in the tree's order.
            order = tuple(names.index(name) for name in leaves if name in names)
            compiled = compiled_for(self._traced[structure], parts.varying, self._mesh)
            self._timed.setdefault(compiled.prefix, compiled.prefix.compile_seconds)
            self._prepared[structure, names] = Prepared(parts, order, compiled)
        return self._prepared[structure, names]

    def onwards(self, earlier: Prepared, later: Prepared) -> Timed:
        """:meth:`~bqjax.sensitivity.slicing.Split.onwards` of one split to another of the same program, compiled."""
        links, to = earlier.compiled.links, later.parts.varying
        if to not in links:
            links[to] = Timed(partial(earlier.compiled.parts.onwards, later.compiled.parts))
        self._timed.setdefault(links[to], links[to].compile_seconds)
        return links[to]

    def suffix(self, prepared: Prepared, perturbation: Perturbation, joint: bool) -> Timed:
        """:func:`~bqjax.sensitivity.candidates.score_candidates` for this perturbation, compiled."""
        compiled, asked = prepared.compiled, (perturbation, joint, prepared.order)
        if asked not in compiled.suffixes:
            function = partial(score_candidates, self._mesh, compiled.parts, perturbation, prepared.order, joint)
            compiled.suffixes[asked] = Timed(function)
        suffix = compiled.suffixes[asked]
        self._timed.setdefault(suffix, suffix.compile_seconds)
        return suffix
