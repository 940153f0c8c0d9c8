"""The curvature of a network's outputs in every leaf that enters them linearly, of any JAX function.

For outputs ``z(params, batch)`` and a leaf used as ``y = x W`` the Gauss-Newton matrix is close to ``A (x) diag(g)``:
``A = E[x x^T]`` of what the leaf is multiplied with, and ``g`` the importance of its outputs. No layer classes and no hooks: the
function is traced, and the products in which a leaf takes part are found in what it does (:mod:`bqjax.sensitivity.taps`).

References:
  Martens, Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature" (arXiv 1503.05671).
  Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (arXiv 2210.17323), for ``A`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bqjax.core.journal import digest
from bqjax.core.leaves import is_compressed
from bqjax.core.tree import named_leaves, replace
from bqjax.sensitivity.importance import output_moments
from bqjax.sensitivity.layouts import Combined, Plan, combined, planned
from bqjax.sensitivity.leaf_curvature import LeafCurvature
from bqjax.sensitivity.lookups import lookup_curvature, lookup_layout
from bqjax.sensitivity.products import WIDEST, Moments
from bqjax.sensitivity.shifts import Shift, find_shifts, placed
from bqjax.sensitivity.spread import summed
from bqjax.sensitivity.taps import Taps
from bqjax.sensitivity.views import View, whole

__all__ = ["Curvature", "output_curvature"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curvature(Mapping[str, LeafCurvature]):
    """Curvature by leaf name.

    Attributes:
      leaves: of the leaves that enter the outputs linearly.
      importance: by name, of all leaves asked for: the diagonal alone (:func:`~bqjax.sensitivity.importance.output_importance`).
      left: by name, why a leaf is not among ``leaves``; its importance is all that is known of it.
      notes: by name, what is left out of a leaf's curvature.
      shifts: by name, of the leaves whose curvature is ``centred``, where the mean of their outputs can be corrected.
      fingerprint: of the parameters that it was taken at.
    """

    leaves: Mapping[str, LeafCurvature] = field(repr=False)
    importance: Mapping[str, np.ndarray] = field(repr=False)
    left: Mapping[str, str]
    notes: Mapping[str, str]
    shifts: Mapping[str, Shift] = field(repr=False)
    fingerprint: str

    def __getitem__(self, name: str) -> LeafCurvature:
        if name in self.left:
            raise KeyError(f"leaf {name!r} has no curvature: it {self.left[name]}")
        return self.leaves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)

    def check(self, params: Any) -> None:
        """Raises ``ValueError`` where this is the curvature of other parameters."""
        if digest(params) != self.fingerprint:
            raise ValueError("this is the curvature of other parameters: take output_curvature of these")


def output_curvature(
    outputs: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Sequence[Any],
    *,
    key: jax.Array,
    names: Sequence[str] | None = None,
    positions: int = 2048,
    draws: int = 1,
    examples: int = 32,
    max_width: int | None = None,
    mesh: Mesh | None = None,
) -> Curvature:
    """Curvature of the outputs in every leaf that enters them linearly, and the importance of all leaves.

    Found are products (``dot_general``, ``conv_general_dilated``) and look-ups of rows (``gather``) that a leaf reaches by
    reshapes, transposes, slices and conversions alone, in calls, loops and branches too. A leaf that is used several times has the
    mean over all uses; one whose uses differ (an embedding that is also the last layer's kernel) that of the products. Leaves
    whose rows are looked up and nothing else (embeddings) have one matrix for what a row holds, see
    :mod:`bqjax.sensitivity.lookups`.

    Where a batch is a mapping with an entry ``"mask"`` of ``[n]``, examples of mask 0 are cut out of all its arrays of ``n`` rows.
    Padding within examples does count: zeros there scale ``inputs`` down and ``outputs`` up, and leave their product alone.

    Time: one pass over the data, and ``2 * positions * d^2`` operations a leaf and batch; then ``draws`` passes with gradients.
    Memory: ``4 * G * d^2`` bytes a leaf, twice while batches are added up, and the patches ``positions * G * d`` of one leaf.
    Inputs wider than ``max_width`` are taken in blocks; what connects the blocks is left out (``notes`` says so): ``n`` rows and
    ``D`` inputs then take at most about ``4 * n * D`` bytes.

    Args:
      outputs: ``outputs(params, batch) -> [n, ...]``, traceable; rows of padding must not depend on the parameters.
      params: parameters, any pytree.
      batches: calibration data, batches of few shapes; no labels are used.
      key: a ``jax.random`` key.
      names: the leaves wanted; None takes all of floating point.
      positions: of a product's rows of inputs at most so many are looked at in each batch, spread evenly.
      draws, examples: of the importance, see :func:`~bqjax.sensitivity.importance.output_importance`.
      max_width: inputs of one block; None takes at most as many as there are rows of calibration data behind a leaf, and at most
        4,096 (:func:`~bqjax.sensitivity.products.width_for`).
      mesh: devices to spread batches over, a mesh of one axis; None takes the one that ``jax.default_device`` names, or else all.
        Another number of devices gives the same moments to rounding.

    Returns:
      :class:`Curvature`, a mapping by leaf name. Every leaf asked for is in it or in its ``left`` with the reason.

    Raises:
      ValueError: no batches, or none with an example that counts; a setting out of range; a leaf that does not exist; inputs or
        gradients that are not finite, by leaf.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
      >>> outputs = lambda p, x: jnp.tanh(x @ p["w"]) * p["scale"]
      >>> found = output_curvature(outputs, {"w": jnp.ones((2, 1)), "scale": jnp.ones(())}, [x], key=jax.random.key(0))
      >>> found["w"].inputs.tolist(), dict(found.left)
      ([[[5.0, 1.0], [1.0, 2.0]]], {'scale': "goes through 'mul', which is no product that a curvature is known for"})
    """
    for setting, value in (("positions", positions), ("draws", draws), ("examples", examples), ("max_width", max_width)):
        if value is not None and value < 1:
            raise ValueError(f"{setting} must be at least 1, got {value}")
    leaves = named_leaves(params)
    floating = [name for name, leaf in leaves.items() if not is_compressed(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)]
    names = floating if names is None else list(dict.fromkeys(names))
    replace(params, dict.fromkeys(names))  # names the leaf that does not exist
    for name in names:
        if name not in floating:
            raise ValueError(f"leaf {name!r} is no floating-point array, and has no curvature")
    batches = _without_padding(batches)
    taps = Taps(positions, max_width, len(batches))
    sums = _sums(taps, outputs, params, batches, names, key, mesh)
    plans: dict[str, Plan] = {}
    moments: dict[str, Combined] = {}
    left: dict[str, str] = {}
    for name in names:
        plan = _plan(taps, name, np.shape(leaves[name]))
        reason: str | None = plan if isinstance(plan, str) else None
        if not isinstance(plan, str):
            plans[name] = plan
            moments[name] = combined(plan, {use.place: sums.pop(use.place) for use in plan.uses})
            _check_finite(name, moments[name])
            reason = _uninformed(moments[name])
        if reason is not None:
            left[name] = reason
    signs = jax.random.fold_in(key, len(batches))
    found = [name for name in names if name not in left]
    looked_up = {
        name: layout for name in found if (layout := lookup_layout(plans[name], taps.uses, max_width or WIDEST)) is not None
    }
    importance, second = output_moments(
        outputs, params, batches, looked_up, key=signs, draws=draws, names=names, examples=examples, mesh=mesh
    )
    shifts = _shifts(outputs, params, batches[0], {name: plans[name] for name in found})

    def curvature_of(name: str) -> LeafCurvature:
        own = moments.pop(name)
        if name in looked_up:
            return lookup_curvature(looked_up[name], second[name], importance[name], own.rows)
        return _leaf_curvature(plans[name], own, importance[name], name in shifts)

    made = {name: curvature_of(name) for name in found}
    return Curvature(
        leaves=made,
        importance=importance,
        left=left,
        notes={name: note for name in found if (note := _note(plans[name], made[name].rows))},
        shifts=shifts,
        fingerprint=digest(params),
    )


def _without_padding(batches: Sequence[Any]) -> list[Any]:
    """The batches without examples of mask 0."""
    if not len(batches):
        raise ValueError("no batches to take a curvature on: the calibration data holds no examples")
    kept = []
    for batch in batches:
        mask = batch.get("mask") if isinstance(batch, Mapping) else None
        if mask is None or np.ndim(mask) != 1 or (rows := np.flatnonzero(np.asarray(mask))).size == len(mask):
            kept.append(batch)
        elif rows.size:
            n = len(mask)
            kept.append(jax.tree.map(lambda x, rows=rows, n=n: x[rows] if np.ndim(x) and len(x) == n else x, batch))
    if not kept:
        raise ValueError("no batches to take a curvature on: every example has mask 0")
    return kept


def _sums(
    taps: Taps,
    outputs: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Sequence[Any],
    names: Sequence[str],
    key: jax.Array,
    mesh: Mesh | None,
) -> dict[str, Moments]:
    """Moments of every use over all batches."""
    return summed(partial(_tapped, taps, outputs, _views(params, names)), params, batches, key=key, mesh=mesh)


def _views(params: Any, names: Collection[str] | None = None) -> list[View | None]:
    """What each array of the flattened parameters is of a leaf (those within a compressed leaf are none)."""
    views: list[View | None] = []
    for name, leaf in named_leaves(params).items():
        if is_compressed(leaf):
            views += [None] * len(jax.tree.leaves(leaf))
        else:
            views.append(whole(name, np.shape(leaf)) if names is None or name in names else None)
    return views


def _tapped(
    taps: Taps, outputs: Callable[[Any, Any], Any], views: Sequence[View | None], params: Any, batch: Any, key: jax.Array
) -> dict[str, Moments]:
    """Moments of every use on one batch. Traceable."""
    closed = jax.make_jaxpr(outputs)(params, batch)
    arguments = jax.tree.leaves((params, batch))
    return taps.run(closed, arguments, [*views, *([None] * (len(arguments) - len(views)))], key)[1]


def _plan(taps: Taps, name: str, shape: tuple[int, ...]) -> Plan | str:
    """How a leaf's uses make its curvature, or why they do not."""
    if name in taps.others:
        return "; ".join(taps.others[name])
    uses = {place: use for place, use in taps.uses.items() if use.view.leaf == name}
    return planned(shape, uses, taps.width(name)) if uses else "is not what the outputs depend on"


def _note(plan: Plan, rows: int) -> str:
    """What a leaf's curvature leaves out."""
    found = []
    if plan.layout.blocks > 1:
        found.append(f"in {plan.layout.blocks} blocks of {plan.layout.width} inputs, from {rows} rows of calibration data")
    if plan.dropped:
        found.append(f"its use by {', '.join(sorted(set(plan.dropped)))} is counted in the importance alone")
    return "; ".join(found)


def _check_finite(name: str, moments: Combined) -> None:
    if not (np.isfinite(moments.mean).all() and np.isfinite(np.trace(moments.second, axis1=1, axis2=2)).all()):
        raise ValueError(f"the inputs of leaf {name!r} are NaN or infinite on the calibration data")


def _uninformed(moments: Combined) -> str | None:
    """Why moments say nothing of a leaf, or None."""
    power = np.diagonal(moments.second, axis1=1, axis2=2)
    if not power.any():
        return "has inputs that are 0 throughout the calibration data"
    if moments.second.shape[-1] > 1 and not (power - np.square(moments.mean) > 1e-6 * power).any():
        return f"has inputs that are the same at all {moments.rows} positions of the calibration data"
    return None


def _shifts(outputs: Callable[[Any, Any], Any], params: Any, batch: Any, plans: Mapping[str, Plan]) -> dict[str, Shift]:
    """The bias behind each leaf that has one, by groups and rows."""
    closed = jax.make_jaxpr(outputs)(params, batch)
    data = [None] * len(jax.tree.leaves(batch))
    shifts = find_shifts(closed, [*jax.tree.leaves(params), *data], [*_views(params), *data])
    made = {name: placed(shifts[name], plan.layout) for name, plan in plans.items() if name in shifts and not plan.dropped}
    return {name: shift for name, shift in made.items() if shift is not None}


def _leaf_curvature(plan: Plan, moments: Combined, importance: np.ndarray, centred: bool) -> LeafCurvature:
    power = np.trace(moments.second, axis1=1, axis2=2, dtype=np.float64)  # [G]
    of_rows = plan.layout.to_rows(importance).sum(-1, dtype=np.float64)
    outputs = np.where(power[:, None] > 0, of_rows / np.where(power > 0, power, 1)[:, None], 0)
    return LeafCurvature(moments.second, moments.mean, outputs.astype(np.float32), moments.rows, centred, plan.layout)
