"""Recipes: from the rows of a sweep to a number of bits for each layer, as rules of methods here and as text for other libraries.

Rounding to ``b`` bits is close to noise of standard deviation ``step / sqrt(12)``. What Gaussian noise of that size costs a layer
is read from the sweep, between the levels that were measured. Layers go to fewer bits in the order of what a saved bit costs, as
long as the sum stays within the drop that is allowed. Sums are what budgets expect: :mod:`bqjax.sensitivity.pairs` says how well
they hold.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bqjax.core.rules import Rule

__all__ = ["LayerBits", "Recipe", "make_recipe", "read_sweep"]

_FLOAT = 32


class LayerBits(NamedTuple):
    """What a layer goes to.

    Attributes:
      leaf: its name.
      size: weights.
      bits: 32 where it stays as it is.
      drops: expected drop of the sweep's metric by bits.
      errors: their standard errors.
    """

    leaf: str
    size: int
    bits: int
    drops: Mapping[int, float]
    errors: Mapping[int, float]


class Recipe(NamedTuple):
    """Bits for each layer.

    Attributes:
      layers: in the sweep's order.
      metric: what drops are of.
      max_drop: that was allowed, a fraction.
      drop, error: expected of all layers together, the sum over layers.
    """

    layers: tuple[LayerBits, ...]
    metric: str
    max_drop: float
    drop: float
    error: float

    def rules(self) -> list[Rule[int]]:
        """Rules for methods whose setting is bits (post-training quantization); layers that stay are skipped."""
        return [Rule(layer.leaf, skip=True) if layer.bits == _FLOAT else Rule(layer.leaf, layer.bits) for layer in self.layers]

    def _modules(self, bits: int) -> list[str]:
        return [layer.leaf.rpartition("/")[0] or layer.leaf for layer in self.layers if layer.bits == bits]

    def qwix(self) -> str:
        """Python text of ``qwix.QuantizationRule`` entries, weights only; the first that matches a module's path decides."""
        lines = ["rules = ["]
        for bits in sorted({layer.bits for layer in self.layers} - {_FLOAT}):
            pattern = "|".join(map(re.escape, self._modules(bits)))
            lines.append(f"    qwix.QuantizationRule(module_path={pattern!r}, weight_qtype='int{bits}'),")
        return "\n".join([*lines, "]"]) + "\n"

    def bits_json(self) -> str:
        """JSON text of bits by layer, names with dots as PyTorch has them; layers that stay have null."""
        names = [(layer.leaf.rpartition("/")[0] or layer.leaf).replace("/", ".") for layer in self.layers]
        bits = [None if layer.bits == _FLOAT else layer.bits for layer in self.layers]
        return json.dumps(dict(zip(names, bits, strict=True)), indent=1) + "\n"


def read_sweep(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a ``sweep.json``.

    Raises:
      ValueError: the file is none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no sweep.json: {error}") from error
    if not (isinstance(content, dict) and isinstance(content.get("rows"), list) and "metric" in content):
        raise ValueError(f"{path} is no sweep.json: it has no rows and no metric; name one that `bqjax sweep` wrote")
    return content


def make_recipe(sweep: Mapping[str, Any], *, max_drop: float = 0.01, widths: Sequence[int] = (4, 8)) -> Recipe:
    """Bits for each layer from the rows of Gaussian noise of a sweep.

    The noise of ``b`` bits is that of symmetric rounding with a scale for each output channel: the channels' largest weights over
    ``2^(b-1) - 1`` are the steps.

    Args:
      sweep: the content of a ``sweep.json``.
      max_drop: of the sweep's metric, a fraction: the sum of the layers' expected drops and twice its standard error stay below.
      widths: bits to choose from.

    Raises:
      ValueError: no rows of Gaussian noise on whole layers; a file of an earlier release, which does not say how large weights are;
        a drop or a width out of range.
    """
    if not (max_drop > 0 and math.isfinite(max_drop)):
        raise ValueError(f"max_drop must be positive, got {max_drop}")
    if not len(widths) or any(not 2 <= b <= 16 for b in widths):
        raise ValueError(f"widths must be from 2 to 16 bits, got {list(widths)}")
    leaves = sweep.get("leaves")
    if leaves is None:
        raise ValueError("this sweep.json is of an earlier release and does not say how large the weights are: run the sweep again")
    rows: dict[str, list[Any]] = {}
    for row in sweep["rows"]:
        whole = row.get("lower") is None and row.get("upper") is None and row.get("by") is None and row.get("bin") is None
        if row["kind"] == "gaussian" and whole and row["drop"] is not None:
            rows.setdefault(row["leaf"], []).append(row)
    if not rows:
        raise ValueError("the sweep has no rows of Gaussian noise on whole layers, which a recipe is made from: add NoiseByLayer()")
    widths = sorted(set(widths), reverse=True)
    found = {}
    for leaf, own in rows.items():
        steps = {b: leaves[leaf]["channels_largest"] / (2 ** (b - 1) - 1) for b in widths}
        costs = {b: _cost(own, step * step / 12) for b, step in steps.items()}
        found[leaf] = {b: c[0] for b, c in costs.items()}, {b: c[1] for b, c in costs.items()}
    sizes = {leaf: int(leaves[leaf]["size"]) for leaf in found}
    bits = _chosen(found, sizes, widths, max_drop)
    layers = tuple(LayerBits(leaf, sizes[leaf], bits[leaf], *found[leaf]) for leaf in found)
    drop, error = _total(found, bits)
    return Recipe(layers, str(sweep["metric"]), max_drop, drop, error)


def _cost(rows: Sequence[Mapping[str, Any]], variance: float) -> tuple[float, float]:
    """Drop and its error at a variance of noise: straight between the levels that were measured, from 0 at none."""
    levels = sorted((float(r["magnitude"]) ** 2, float(r["drop"]), _error(r)) for r in rows)
    x, y, e = (np.array([0.0, *column]) for column in zip(*levels, strict=True))
    y = np.maximum.accumulate(np.maximum(y, 0.0))  # less noise is not worse
    if variance > x[-1]:  # on along the straight line from none
        return float(y[-1] * variance / x[-1]), float(e[-1] * variance / x[-1])
    return float(np.interp(variance, x, y)), float(np.interp(variance, x, e))


def _error(row: Mapping[str, Any]) -> float:
    known = [row.get(name) for name in ("error", "standard_error")]
    return float(next((e for e in known if e is not None), 0.0))


def _total(found: Mapping[str, Any], bits: Mapping[str, int]) -> tuple[float, float]:
    taken = [(found[leaf][0][b], found[leaf][1][b]) for leaf, b in bits.items() if b != _FLOAT]
    return float(sum(d for d, _ in taken)), math.sqrt(sum(e * e for _, e in taken))


def _chosen(found: Mapping[str, Any], sizes: Mapping[str, int], widths: Sequence[int], max_drop: float) -> dict[str, int]:
    """Steps to fewer bits in the order of drop for a saved bit, as long as they fit."""
    bits = dict.fromkeys(found, _FLOAT)
    closed: set[str] = set()
    while True:
        steps = []
        for leaf, now in bits.items():
            fewer = [b for b in widths if b < now]
            if fewer and leaf not in closed:
                more = found[leaf][0][fewer[0]] - (0.0 if now == _FLOAT else found[leaf][0][now])
                steps.append((more / ((now - fewer[0]) * sizes[leaf]), leaf, fewer[0]))
        if not steps:
            return bits
        _, leaf, to = min(steps)
        drop, error = _total(found, bits | {leaf: to})
        if drop + 2 * error <= max_drop:
            bits[leaf] = to
        else:
            closed.add(leaf)
