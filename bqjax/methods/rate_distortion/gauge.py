"""The curvature of each leaf, scaled towards what the outputs are measured to lose by an error of that leaf.

``A (x) diag(g)`` is an approximation, and off by a factor that differs from layer to layer: on ResNet-20 most leaves cost less than
half of what is predicted, the last ones up to half as much again. One lmbda for all leaves is best only if their errors are told in
the same units. So one compressed tree is made, each of its leaves is put into the network alone, and its change of the outputs is
measured on some calibration examples. The square root of the ratio to what was predicted scales the leaf: the whole ratio lowers
the squared change of the outputs further, and the divergence of the predictions no more (docs/rate_distortion.md).

The idea is that of a measured rate-distortion curve for each layer (Shoham, Gersho 1988) with a single point, the form of the curve
being known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import decode
from bqjax.core.rules import Rule
from bqjax.core.tree import named_leaves, replace
from bqjax.methods.rate_distortion.distortion import predicted_distortion
from bqjax.methods.rate_distortion.solver import SolverConfig, bin_and_quant_rd, mean_removal_cost, prepare
from bqjax.sensitivity.curvature import Curvature

__all__ = ["gauged_curvature", "measured_ratios"]

_SHARE = 0.5  # half way, in the logarithm, from what is predicted to what is measured
_EXPONENT = -7.0  # power of two, of what the removal of a weight costs: two bits a weight on ResNet-20
_FURTHEST = 10.0  # a factor beyond is rather that of examples too few than of the leaf


def measured_ratios(
    outputs: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Sequence[Any],
    curvature: Curvature,
    *,
    examples: int = 256,
    rules: Sequence[Rule[Any]] | None = None,
    config: SolverConfig | None = None,
) -> dict[str, float]:
    """By leaf, what an error costs over what the curvature predicts, each leaf compressed alone with the bias behind it.

    Errors are those of a compression to about two bits a weight. Time: that one, and a pass over the examples for each leaf.

    Args:
      outputs: ``outputs(params, batch) -> [n, ...]``, zero for padding; give a jitted one.
      params: parameters.
      batches: calibration data; only as many of the first as hold ``examples`` rows are looked at.
      curvature: at ``params``.
      examples: at least so many rows of batches, where there are as many.
      rules, config: see :func:`bqjax.methods.rate_distortion.solver.bin_and_quant_rd`.

    Returns:
      Factors from 0.1 to 10, for leaves with an error; others have none.

    Raises:
      ValueError: see ``bin_and_quant_rd``; ``examples`` is below 1.
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    prepared = prepare(params, curvature, rules, config)
    lmbda = mean_removal_cost(prepared) * 2**_EXPONENT
    tree = bin_and_quant_rd(params, curvature, lmbda=lmbda, rules=rules, config=config, prepared=prepared)
    new, predicted = named_leaves(decode(tree)), predicted_distortion(params, tree, curvature)
    chosen: list[tuple[Any, jax.Array, float]] = []
    while len(chosen) < len(batches) and sum(n for _, _, n in chosen) < examples:
        batch = batches[len(chosen)]
        before = outputs(params, batch)
        mask = batch.get("mask") if isinstance(batch, Mapping) else None
        chosen.append((batch, before, float(len(before) if mask is None else np.sum(np.asarray(mask) != 0))))
    count = sum(n for _, _, n in chosen)
    found = {}
    for name in prepared.rows:
        names = [name, *([prepared.shifts[name].bias] if name in prepared.shifts else [])]
        expected = sum(predicted.get(n, 0.0) for n in names)
        if not (expected > 0 and count > 0):
            continue
        alone = replace(params, {n: new[n] for n in names})
        changes = [jnp.square((outputs(alone, batch) - before).astype(jnp.float32)).sum() for batch, before, _ in chosen]
        ratio = float(np.sum(jax.device_get(changes))) / count / 2 / expected
        if np.isfinite(ratio):
            found[name] = min(_FURTHEST, max(1 / _FURTHEST, ratio))
    return found


def gauged_curvature(curvature: Curvature, ratios: Mapping[str, float]) -> Curvature:
    """The curvature with what it says of each leaf times the square root of a ratio; leaves without one stay as they are."""
    scales = {name: np.float32(ratio**_SHARE) for name, ratio in ratios.items()}
    one = np.float32(1)
    leaves = {name: leaf._replace(outputs=leaf.outputs * scales.get(name, one)) for name, leaf in curvature.leaves.items()}
    importance = {name: np.asarray(h) * scales.get(name, one) for name, h in curvature.importance.items()}
    return with_fields(curvature, leaves=leaves, importance=importance)
