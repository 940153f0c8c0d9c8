"""The Lagrangian weight of storage for a limit: the highest at which the drops of metrics on calibration data keep theirs.

Any method that takes a ``lmbda`` can be searched so: entropy-constrained scalar quantization, the rate-distortion solver, your own.

References: see :mod:`bqjax.sensitivity.limit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.task import Score, signed
from bqjax.core.tree import named_leaves
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.limit import highest_within

__all__ = ["HIGHEST", "LOWEST", "lambda_within", "removal_unit", "search_lambda"]

LOWEST, HIGHEST = -16.0, 2.0
"""Powers of two, of the lmbda at which a bit is worth what the removal of a weight costs, between which is searched."""


def search_lambda(
    compress: Callable[[float], Any],
    score: Score,
    params: Any,
    batches: Sequence[Any],
    importance: Mapping[str, Any],
    *,
    limits: Mapping[str, float],
    steps: int = 8,
    scan: int = 0,
    exponents: tuple[float, float] = (LOWEST, HIGHEST),
    progress: Progress | None = None,
) -> float:
    """The highest Lagrangian weight of a bit at which the drops of metrics keep their limits, on calibration data.

    By bisection of its logarithm (:func:`bqjax.sensitivity.limit.highest_within`). What is returned was measured to keep the
    limits; a metric on few examples is not quite monotone, and a higher one may keep them too.

    Args:
      compress: ``compress(lmbda) -> tree`` of compressed leaves, in place of ``params``.
      score, batches: calibration data.
      params: parameters.
      importance: of the leaves that are compressed, by name (``output_importance``, or ``importance`` of a curvature): it says in
        which range lmbda lies.
      limits: by metric (``"-loss"`` where lower is better), how much it may drop.
      steps, scan: see :func:`bqjax.sensitivity.limit.highest_within`.
      exponents: powers of two to search between, see :func:`removal_unit`.
      progress: called after each measurement.

    Raises:
      ValueError: no leaf in ``importance``, no limits, or limits that do not hold at the lowest lmbda of the search either.

    Example:
      >>> curvature = output_curvature(outputs, params, batches, key=jax.random.key(0))  # doctest: +SKIP
      >>> search_lambda(  # doctest: +SKIP
      ...     lambda lmbda: bin_and_quant_rd(params, curvature, lmbda=lmbda),
      ...     score, params, batches, curvature.importance, limits={"accuracy": 0.005},
      ... )
    """
    if not importance:
        raise ValueError("there is no leaf to find lmbda for: importance names none")
    if not limits:
        raise ValueError('there is no limit to find lmbda for: name a metric and its largest drop, {"accuracy": 0.01}')
    unit = removal_unit(params, importance)
    evaluator = Evaluator(score, batches)
    before = evaluator.baseline(params)
    told: list[str] = []

    def excess(lmbda: float) -> float:
        after = evaluator.baseline(decode(compress(lmbda)))
        lost = {by: float(signed(before, by) - signed(after, by)) for by in limits}
        told[:] = [f"{by.removeprefix('-')} {drop:+.4f}" for by, drop in lost.items()]
        return max(math.inf if math.isnan(drop) else drop - limits[by] for by, drop in lost.items())

    return lambda_within(
        excess, unit, steps=steps, scan=scan, exponents=exponents, progress=progress, told=lambda: f"drop of {', '.join(told)}"
    )


def removal_unit(params: Any, importance: Mapping[str, Any]) -> float:
    """The lmbda at which a bit is worth what the removal of a weight costs, a mean over all by their importance alone."""
    leaves = named_leaves(params)
    distortion = sum(float(jnp.mean(h)) * float(jnp.var(leaves[n])) * leaves[n].size / 2 for n, h in importance.items())
    return distortion / sum(leaves[n].size for n in importance) or 1.0


def lambda_within(
    excess: Callable[[float], float],
    unit: float,
    *,
    steps: int = 7,
    scan: int = 4,
    exponents: tuple[float, float] = (LOWEST, HIGHEST),
    progress: Progress | None = None,
    told: Callable[[], str] | None = None,
) -> float:
    """The highest lmbda within a limit, searched on its logarithm.

    Args:
      excess: measured at a lmbda: how far the drop is above its limit (the worst of several limits); rises on average.
      unit: the lmbda at which a bit is worth what the removal of a weight costs.
      steps, scan: see :func:`bqjax.sensitivity.limit.highest_within`.
      exponents: powers of two, of ``unit``, to search between; the lowest is measured where all others miss the limit.
      progress: called after each measurement.
      told: what ``progress`` says of the last measurement; None says how far it is above the limit.

    Raises:
      ValueError: no lmbda that was tried keeps the limit.
    """
    tried: dict[float, float] = {}

    def lost(exponent: float) -> float:
        lmbda = unit * 2**exponent
        tried[lmbda] = excess(lmbda)
        if progress:
            what = told() if told else f"{tried[lmbda]:+.4f} above the limit"
            progress(len(tried), max(len(tried), steps + scan), f"lmbda {lmbda:.3g}: {what}")
        return tried[lmbda]

    low, high = exponents
    found = highest_within(lost, 0.0, low=low, high=high, steps=steps, scan=scan)
    if found is None and lost(low) <= 1e-9:
        found = low
    if found is None:
        lmbda = min(tried, key=lambda x: (tried[x], x))
        raise ValueError(
            f"no lmbda keeps the limit: the nearest, {lmbda:.3g}, is {tried[lmbda]:.4f} above it; "
            "allow more, start from more levels, or calibrate on more data"
        )
    return float(unit * 2**found)
