"""Magnitude pruning: the smallest weights become zero, at once or more of them step by step while a network is trained.

References:
  Han, Pool, Tran, Dally, "Learning both weights and connections for efficient neural networks", NeurIPS 2015
  (arXiv 1506.02626).
  Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017
  (arXiv 1710.01878).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.gather import beside, gathered
from bqjax.core.rules import Rule, group_setting, grouped, select
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.segments import over_pieces

__all__ = ["GradualPruning", "PruningState", "PruningTransformation", "gradual_pruning", "magnitude_masks", "prune"]


def magnitude_masks(params: Any, sparsity: float | jax.Array, rules: Sequence[Rule[float]] | None = None) -> dict[str, jax.Array]:
    """Magnitude pruning: which weights to keep, all but the ``round(sparsity n)`` smallest of each leaf or group of leaves.

    The number is exact: among equals the first go. Memory is linear and nothing is sorted.

    Args:
      params: pytree of arrays.
      sparsity: part of the weights that become zero, in [0, 1); may be traced.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is the sparsity of a rule's leaves,
      and
        leaves of one ``group`` are compared with one another: ``[Rule("*kernel", group="all")]`` prunes globally. Without
        rules, floating-point leaves of two or more dimensions are taken.

    Returns:
      Booleans of the leaves' shapes by name, True for weights that stay. Traceable. At least one weight of a group stays.

    Raises:
      ValueError: a sparsity outside [0, 1); leaves of one group with different settings; integer leaves; on concrete
        parameters NaN or infinite weights, and leaves of which nothing but zeros would be left; whatever
        :func:`bqjax.core.rules.select` refuses. The message names the leaf.

    Example:
      >>> w = np.float32([[0.1, -3.0], [2.0, -0.2]])
      >>> magnitude_masks({"w": w}, 0.5)["w"].tolist()
      [[False, True], [True, False]]
    """
    leaves, taken = named_leaves(params), _taken(params, rules)
    masks: dict[str, jax.Array] = {}
    for group, names in grouped(taken):
        setting = group_setting(group, names, taken)
        part = _checked(f"rule {taken[names[0]].pattern!r}: sparsity", setting) if setting is not None else sparsity
        part = _checked("sparsity", part)
        for name in names:
            check_finite(name, leaves[name])
        each = _masks([jnp.asarray(leaf) for leaf in gathered([leaves[name] for name in names])], _count(part, leaves, names))
        masks.update({name: beside(leaves[name], mask) for name, mask in zip(names, each, strict=True)})
        for name in names:
            if isinstance(masks[name], jax.core.Tracer) or bool((masks[name] & (jnp.asarray(leaves[name]) != 0)).any()):
                continue
            raise ValueError(
                f"leaf {name!r} would be all zero at sparsity {float(part):g}, and nothing would get through its layer: lower the "
                f"sparsity, give the leaf its own by a rule without a group, or skip it, Rule({name!r}, skip=True)"
            )
    return masks


def _taken(params: Any, rules: Sequence[Rule[Any]] | None) -> Mapping[str, Rule[Any]]:
    leaves, taken = named_leaves(params), select(params, rules).taken
    for name in taken:
        if not jnp.issubdtype(leaves[name].dtype, jnp.floating):
            raise ValueError(f"leaf {name!r} is of integers, {leaves[name].dtype}: skip it, Rule({name!r}, skip=True)")
    return taken


def _checked(what: str, sparsity: Any) -> Any:
    if isinstance(sparsity, jax.core.Tracer):
        return sparsity
    if isinstance(sparsity, bool) or (not np.isscalar(sparsity) and np.ndim(sparsity)):
        raise ValueError(f"{what} must be a number in [0, 1), got {sparsity!r}")
    if not 0 <= float(sparsity) < 1:
        raise ValueError(f"{what} must be in [0, 1), got {sparsity}: it is the part of the weights that become zero")
    return sparsity


def _count(sparsity: Any, leaves: Mapping[str, Any], names: Sequence[str]) -> Any:
    n = sum(leaves[name].size for name in names)
    if isinstance(sparsity, jax.core.Tracer):
        return jnp.clip(jnp.round(sparsity * n), 0, n - 1).astype(jnp.int32)
    return jnp.int32(min(round(float(sparsity) * n), n - 1))


def _keys(weight: jax.Array) -> jax.Array:
    """Sizes as whole numbers in their own order: the bits of floats that are not negative."""
    return lax.bitcast_convert_type(jnp.abs(weight).astype(jnp.float32), jnp.uint32)


@jax.jit
def _masks(weights: list[jax.Array], count: jax.Array) -> list[jax.Array]:
    return _largest([_keys(w) for w in weights], count)


def _largest(keys: list[jax.Array], count: jax.Array) -> list[jax.Array]:
    """Masks of all but the ``count`` smallest. In pieces: numbers that are counted take four times the room of masks."""

    def smaller(limit: jax.Array) -> jax.Array:
        def add(total: jax.Array, _: Any, piece: jax.Array) -> jax.Array:
            return total + (piece < limit).sum(dtype=jnp.int32)

        return functools.reduce(lambda total, key: over_pieces(add, total, key.reshape(-1)), keys, jnp.int32(0))

    def bisect(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // 2
        enough = smaller(middle + 1) >= jnp.maximum(count, 1)
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    limit = lax.fori_loop(0, 31, bisect, (jnp.uint32(0), jnp.uint32(0x7F800000)))[1]

    def mark(state: tuple[jax.Array, jax.Array], start: Any, piece: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, mask = state
        equal = piece == limit
        gone = equal & (jnp.cumsum(equal, dtype=jnp.int32) <= left)
        kept = (piece >= limit) & ~gone
        return left - gone.sum(dtype=jnp.int32), lax.dynamic_update_slice_in_dim(mask, kept, start, 0)

    # Among equals the first go.
    masks, left = [], count - smaller(limit)
    for key in keys:
        left, mask = over_pieces(mark, (left, jnp.zeros(key.size, bool)), key.reshape(-1))
        masks.append(mask.reshape(key.shape))
    return masks


def prune(params: Any, masks: Mapping[str, Any]) -> Any:
    """The parameters with zeros where a mask is False. Traceable, and differentiable: no gradient reaches what is pruned.

    Raises:
      ValueError: a name that ``params`` does not have; a mask of another shape than its leaf.

    Example:
      >>> prune({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})["w"].tolist()
      [1.0, 0.0]
    """
    leaves = named_leaves(params)
    replace(params, dict.fromkeys(masks))  # names the leaf that does not exist
    for name, mask in masks.items():
        if np.shape(mask) != np.shape(leaves[name]):
            raise ValueError(f"the mask of leaf {name!r} has shape {np.shape(mask)}, the leaf {np.shape(leaves[name])}")
    return replace(params, {name: jnp.where(mask, leaves[name], 0) for name, mask in masks.items()})


@dataclass(frozen=True, kw_only=True)
class GradualPruning:
    """Sparsity that grows with training, fast at first, by Zhu and Gupta's polynomial:

    ``s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^power`` from step ``begin`` to ``end``.

    Attributes:
      final, initial: sparsities in [0, 1).
      begin, end: steps between which it grows, counted from 0.
      every: steps between one choice of weights and the next; the last is at ``end``.
      power: 3 in the paper.
    """

    final: float
    begin: int
    end: int
    every: int = 100
    initial: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        for what in ("final", "initial"):
            _checked(what, getattr(self, what))
        if self.begin < 0 or self.end <= self.begin:
            raise ValueError(f"begin must not be negative and end must be later, got {self.begin} and {self.end}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if not (self.power > 0 and math.isfinite(self.power)):
            raise ValueError(f"power must be positive and finite, got {self.power}")

    def sparsity(self, step: Any, final: float | None = None) -> jax.Array:
        """The sparsity ``[]`` at a step, which may be traced; ``initial`` before ``begin``. Another ``final`` may be given.

        >>> GradualPruning(final=0.8, begin=100, end=200).sparsity(150).round(4).item()
        0.699999988079071
        """
        final = self.final if final is None else final
        left = 1 - jnp.clip((jnp.asarray(step) - self.begin) / (self.end - self.begin), 0, 1)
        return final + (self.initial - final) * left**self.power

    def due(self, step: Any) -> jax.Array:
        """Whether weights are chosen at a step."""
        step = jnp.asarray(step)
        inside = (step >= self.begin) & (step <= self.end)
        return inside & (((step - self.begin) % self.every == 0) | (step == self.end))


class PruningState(NamedTuple):
    """State of :func:`gradual_pruning`.

    Attributes:
      step: ``[]`` int32, updates so far.
      masks: booleans of the leaves' shapes by name, True for weights that stay; what :func:`prune` takes.
    """

    step: jax.Array
    masks: dict[str, jax.Array]


class PruningTransformation(NamedTuple):
    """``init(params) -> state`` and ``update(updates, state, params) -> (updates, state)``: what ``optax.chain`` takes."""

    init: Callable[[Any], PruningState]
    update: Callable[..., tuple[Any, PruningState]]


def gradual_pruning(schedule: GradualPruning, rules: Sequence[Rule[float]] | None = None) -> PruningTransformation:
    """Gradual magnitude pruning, a link for the end of ``optax.chain``: more and more of the smallest weights are kept at zero.

    At the steps that are due, the weights that are smallest after the update are chosen, ``s(t)`` of them. The update of a weight
    that is pruned is replaced by its negative: applied, it is zero exactly. Pruned weights stay so, being the smallest.

    Args:
      schedule: how sparsity grows.
      rules: which leaves to take, as :func:`magnitude_masks` reads them; ``setting`` is the final sparsity of a rule's leaves.

    Returns:
      The transformation; its state is a :class:`PruningState`. ``update`` needs ``params``.

    Raises:
      ValueError: a sparsity outside [0, 1); ``update`` without ``params``; what :func:`bqjax.core.rules.select` refuses.

    Example:
      >>> import optax
      >>> tx = optax.chain(optax.sgd(0.1), gradual_pruning(GradualPruning(final=0.5, begin=0, end=2, every=1)))
      >>> params = {"w": jnp.array([[1.0, 0.5, 2.0, 0.3]])}
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> (params["w"] != 0).tolist()
      [[True, False, True, False]]
    """
    for rule in rules or ():
        if rule.setting is not None:
            _checked(f"rule {rule.pattern!r}: sparsity", rule.setting)

    def init(params: Any) -> PruningState:
        leaves = named_leaves(params)
        return PruningState(jnp.int32(0), {name: jnp.ones(np.shape(leaves[name]), bool) for name in _taken(params, rules)})

    def update(updates: Any, state: PruningState, params: Any = None, **_: Any) -> tuple[Any, PruningState]:
        if params is None:
            raise ValueError("gradual_pruning() looks at the weights: call update(updates, state, params)")
        taken = _taken(params, rules)
        before, steps = named_leaves(params), named_leaves(updates)
        # The one array of the size of a leaf that the choice needs, beside masks.
        after = {name: _keys((before[name] + steps[name]).astype(before[name].dtype)) for name in taken}

        def chosen() -> dict[str, jax.Array]:
            masks: dict[str, jax.Array] = {}
            for group, names in grouped(taken):
                n = sum(after[name].size for name in names)
                sparsity = schedule.sparsity(state.step, group_setting(group, names, taken))
                count = jnp.clip(jnp.round(sparsity * n), 0, n - 1).astype(jnp.int32)
                masks.update(zip(names, _largest([after[name] for name in names], count), strict=True))
            return masks

        masks = lax.cond(schedule.due(state.step), chosen, lambda: {name: state.masks[name] for name in taken})
        held = {name: jnp.where(masks[name], steps[name], -before[name].astype(steps[name].dtype)) for name in taken}
        return replace(updates, held), PruningState(state.step + 1, masks)

    return PruningTransformation(init, update)
