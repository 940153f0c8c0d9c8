"""Measured rate-distortion curves of a network's layers: what :mod:`bqjax.methods.budget.allocation` plans on.

Distortion is what storing one unit in one way, all others left alone, does to the outputs: the mean over calibration examples of
``sum (z - z0)^2``. It needs no labels, is never negative, and of small independent changes it adds up. ``"loss"``, what the
ranking metric loses, stands beside it, and alone where a task has no outputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.codec.streams import WrittenGroup, encode_leaf
from bqjax.core.journal import Journal
from bqjax.core.leaves import Clustered, CompressedLeaf
from bqjax.core.progress import Progress
from bqjax.core.rules import select
from bqjax.core.task import Task, signed
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.methods.budget.allocation import Curves, Option, Plan, hull
from bqjax.methods.budget.plan import Blocks, BudgetConfig, Layer, Setting, Values, compress_layer, weights_importance
from bqjax.sensitivity.evaluator import Evaluator

__all__ = ["LayerCurves", "Measured", "units"]

_GROUPED = 4096  # leaves of one dimension and at most so many weights share a codebook with those of their kind
_FINEST = 0.3  # between values of lmbda whose exponents are closer than this none is tried
_LOWEST, _HIGHEST = -14.0, 4.0  # exponents of lmbda that are tried


class Measured(NamedTuple):
    """One option of a unit: its setting (None leaves the unit alone), bytes, and distortions by what they are measured in."""

    setting: Setting | None
    bytes: int
    distortions: Mapping[str, float]


def units(params: Any) -> dict[str, tuple[str, ...]]:
    """What gets one setting, by the name of its first leaf: each leaf of two or more dimensions, and small vectors by kind.

    The kind of a vector is the last part of its name (``bias``, ``scale``); there are many of them in a network, and a
    codebook for each would cost more than it saves.
    """
    leaves = named_leaves(params)
    taken = list(select(params, None).taken)
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in taken}
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, leaf in leaves.items():
        small = getattr(leaf, "ndim", 0) == 1 and jnp.issubdtype(leaf.dtype, jnp.floating) and 0 < leaf.size <= _GROUPED
        if name not in taken and small:
            kinds.setdefault((name.rpartition("/")[2], str(leaf.dtype)), []).append(name)
    found.update({names[0]: tuple(names) for names in kinds.values()})
    return found


@dataclass(frozen=True)
class _Given:
    """Replaces a leaf by its context: an array of any content, of which one exists at a time."""

    def __call__(self, weights: jax.Array, candidate: Any, context: Any = None) -> jax.Array:
        del candidate
        return context.astype(weights.dtype)


class LayerCurves:
    """Options of every unit with their measured bytes and distortions; grows as more are asked for.

    Args:
      task: the network; only its calibration data is used.
      config: what is offered.
      key: a ``jax.random`` key.
      journal: keeps the measurements.
      coder: of the indices, which decides what an option's bytes are, see :mod:`bqjax.codec`.
      progress: called after each of the first measurements.

    Attributes:
      weights: leaves by name.
      units: names of leaves by unit, see :func:`units`.
      options: by unit; the first leaves it alone.
      measured: how many options were measured in this process.

    Raises:
      ValueError: nothing can be compressed; NaN or infinite weights.
    """

    def __init__(
        self,
        task: Task,
        config: BudgetConfig,
        *,
        key: jax.Array,
        journal: Journal,
        coder: str = "auto",
        progress: Progress | None = None,
    ):
        self._task, self._config, self._key, self._journal, self._coder = task, config, key, journal, coder
        self.weights = named_leaves(task.params)
        self.units = units(task.params)
        if not self.units:
            raise ValueError(f"task {task.name!r} has no leaf to plan for: none is of floating point with two or more dimensions")
        names = [name for members in self.units.values() for name in members]
        for name in names:
            check_finite(name, self.weights[name])
        if progress:
            progress(0, 1, "importance of the weights")
        self._importance = weights_importance(task, key=key, draws=config.draws)
        self._starts: dict[Any, Clustered] = {}
        self._made: dict[tuple[str, Setting], dict[str, CompressedLeaf]] = {}
        self._evaluator, self._base = self._prepare()
        self.measured = 0
        self.options: dict[str, list[Measured]] = {}
        for unit in self.units:
            self.options[unit] = [Measured(None, self._bytes(unit, {}), dict.fromkeys(self.kinds, 0.0))]
        offered = [(unit, setting) for unit in self.units for setting in self._offered(unit)]
        for i, (unit, setting) in enumerate(offered):
            self.add(unit, setting)
            if progress:
                progress(i + 1, len(offered), f"{unit}: {_short(setting)}")

    @property
    def kinds(self) -> list[str]:
        """What distortions are measured in."""
        return (["outputs"] if self._task.outputs is not None else []) + ["loss"]

    def _prepare(self) -> tuple[Evaluator, float]:
        task, outputs = self._task, self._task.outputs
        batches: list[Any] = [{"batch": batch} for batch in task.calibration]
        if outputs is not None:
            original = jax.jit(outputs)
            batches = [{"batch": batch, "outputs": original(task.params, batch)} for batch in task.calibration]

        def score(params: Any, batch: Any) -> tuple[dict[str, jax.Array], Any]:
            sums, count = task.score(params, batch["batch"])
            sums = sums if isinstance(sums, Mapping) else {"score": sums}
            # What is lost, so that less is better and the original has its own.
            out = {"loss": -jnp.asarray(signed(sums, task.rank_by), jnp.float32)}
            if outputs is not None:
                out["outputs"] = jnp.sum(jnp.square(outputs(params, batch["batch"]) - batch["outputs"]).astype(jnp.float32))
            return out, count

        evaluator = Evaluator(score, batches)
        return evaluator, evaluator.baseline(task.params)["loss"]

    def _unit_lmbda(self, unit: str) -> float:
        """What the removal of a weight costs on average: half the mean importance times the variance, the unit of lmbda."""
        members = self.units[unit]
        importance = np.concatenate([np.ravel(self._importance[n]) for n in members]).astype(np.float64)
        weights = np.concatenate([np.ravel(np.asarray(self.weights[n])) for n in members]).astype(np.float64)
        mean = float(importance.mean()) or 1.0
        return 0.5 * mean * (float(weights.var()) or 1.0)

    def _offered(self, unit: str) -> list[Setting]:
        config, leaf = self._config, self.weights[unit]
        if leaf.ndim < 2:
            return [Values(bins=n) for n in config.vectors]
        lmbdas = [self._lmbda(unit, e) for e in config.exponents]
        made: list[Setting] = [Values(bins=n, lmbda=p) for n in config.bins for p in lmbdas]
        row = leaf.size // leaf.shape[-1]
        for d, bits in config.blocks:
            # A codebook of a quarter of the leaf saves nothing.
            if d <= row and 4 * 2**bits * d <= leaf.size:
                made += [Blocks(d=d, bits=bits, lmbda=p) for p in lmbdas]
        return made

    def _lmbda(self, unit: str, exponent: float) -> float:
        return float(f"{self._unit_lmbda(unit) * 2**exponent:.5g}")  # short enough to be read in a plan

    def leaves(self, unit: str, setting: Setting | None) -> dict[str, CompressedLeaf]:
        """The unit's leaves in compressed form; none where it is left alone."""
        if setting is None:
            return {}
        if (unit, setting) not in self._made:
            config = self._config
            self._made[unit, setting] = compress_layer(
                self._task.params,
                Layer(self.units[unit], setting),
                self._importance,
                key=self._key,
                floor=config.floor,
                iterations=config.iterations,
                starts=self._starts,
            )
        return self._made[unit, setting]

    def _bytes(self, unit: str, made: Mapping[str, CompressedLeaf]) -> int:
        groups: dict[str, WrittenGroup] = {}
        return sum(encode_leaf(n, made.get(n, self.weights[n]), self._coder, groups)[0].bytes for n in self.units[unit])

    def add(self, unit: str, setting: Setting) -> None:
        """Measures one more option of a unit, unless it is there."""
        if any(option.setting == setting for option in self.options[unit]):
            return

        def measure() -> dict[str, Any]:
            made = self.leaves(unit, setting)
            decoded = {name: leaf.decode() for name, leaf in made.items()}
            (found,) = self._evaluator.scores(self._task.params, list(self.units[unit]), _Given(), [np.float32(0)], context=decoded)
            self.measured += 1
            distortions = {"outputs": found["outputs"]} if "outputs" in found else {}
            distortions["loss"] = max(0.0, found["loss"] - self._base)
            return {
                "bytes": self._bytes(unit, made),
                "distortions": {k: v if math.isfinite(v) else None for k, v in distortions.items()},
            }

        key = hashlib.sha256(repr((self.units[unit], setting, self._coder)).encode()).hexdigest()[:32]
        found = self._journal.measure(key, measure)
        if all(value is not None for value in found["distortions"].values()):  # a network that says NaN is no option
            self.options[unit].append(Measured(setting, found["bytes"], found["distortions"]))

    def curves(self, kind: str) -> Curves:
        """The curves in one kind of distortion."""
        return {u: [Option(o.bytes, o.distortions[kind]) for o in options] for u, options in self.options.items()}

    def refine(self, plan: Plan, kind: str) -> int:
        """Measures options next in lmbda to those of a plan and of the next smaller plan on the hull; gives how many are new."""
        before = sum(map(len, self.options.values()))
        for unit, chosen in plan.items():
            kept = hull(self.curves(kind)[unit])
            at = kept.index(chosen) if chosen in kept else 0
            for number in {chosen, kept[max(0, at - 1)]}:
                self._refine_near(unit, self.options[unit][number].setting)
        return sum(map(len, self.options.values())) - before

    def _refine_near(self, unit: str, setting: Setting | None) -> None:
        if setting is None or not setting.lmbda:
            return
        known = sorted(
            o.setting.lmbda for o in self.options[unit] if o.setting is not None and _family(o.setting) == _family(setting)
        )
        base, at = self._unit_lmbda(unit), known.index(setting.lmbda)
        exponents = [math.log2(p / base) for p in known]
        here = exponents[at]
        beside = [exponents[i] if 0 <= i < len(known) else here + step for i, step in ((at - 1, -4.0), (at + 1, 4.0))]
        for other in beside:
            if abs(other - here) > _FINEST and _LOWEST <= (middle := (other + here) / 2) <= _HIGHEST:
                self.add(unit, with_fields(setting, lmbda=self._lmbda(unit, middle)))

    def layers(self, plan: Plan) -> tuple[Layer, ...]:
        """What :class:`bqjax.methods.budget.plan.Planned` takes."""
        chosen = ((unit, self.options[unit][i].setting) for unit, i in plan.items())
        return tuple(Layer(self.units[unit], setting) for unit, setting in chosen if setting is not None)

    def tree(self, plan: Plan) -> Any:
        """The compressed tree of a plan."""
        new: dict[str, CompressedLeaf] = {}
        for unit, i in plan.items():
            new.update(self.leaves(unit, self.options[unit][i].setting))
        return replace(self._task.params, new)


def _family(setting: Setting) -> Setting:
    """A setting without its lmbda."""
    return with_fields(setting, lmbda=0.0)


def _short(setting: Setting) -> str:
    what = f"{setting.bins} values" if isinstance(setting, Values) else f"{setting.bits} bits for {setting.d}"
    return f"{what} at {setting.lmbda:g}"
