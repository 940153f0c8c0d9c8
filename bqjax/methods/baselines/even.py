"""Entropy-coded uniform scalar quantization (even levels): a leaf's weights on a grid whose step is as wide as an error allows.

Levels stand at whole multiples of a step, zero among them, as many as the largest weight needs. At equal squared error their
indices have less entropy than those of the ``k`` best levels (k-means), which stand close where weights are many: at high rates an
even grid is within a quarter of a bit of what any quantizer could reach, and the entropy coder does the rest. With a Lagrangian
weight ``lmbda`` of a bit a weight goes to the next level towards zero where that is cheap, which widens the bin at zero.

References:
  Gish, Pierce, "Asymptotically efficient quantizing", IEEE Transactions on Information Theory 14(5), 1968.
  Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", same 42(5), 1996.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import Affine, Clustered, trim_codebook
from bqjax.core.rules import Rule, select
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.fixed_levels import fixed_levels, joined, loose

__all__ = ["EvenConfig", "even_levels", "even_rate"]

_SAMPLE = 2**16  # weights that a step is first fitted to
_FITS = 6
_PIECE = 2**20
_MOST = 2**15 - 1  # largest code
_TRIES = 40


@dataclass(frozen=True, kw_only=True)
class EvenConfig:
    """How wide the step of a leaf is.

    Attributes:
      rtol: bound on the leaf's relative error, ``|w - w'| / |w|`` in the 2-norm; the step is the widest that keeps it.
      lmbda: Lagrangian weight of a bit of an index, in squared steps: a weight goes to the level ``j`` of least
        ``(w / step - j)^2 + lmbda * bits_j`` among the nearest and the next towards zero.
    """

    rtol: float = 0.05
    lmbda: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must be a relative error between 0 and 1, got {self.rtol}")
        if not 0 <= self.lmbda < math.inf:
            raise ValueError(f"lmbda must be finite and not negative, got {self.lmbda}")


class _Grid(NamedTuple):
    """A step, and the bits of the codes from ``-len(bits) // 2`` on."""

    step: float
    bits: np.ndarray
    lmbda: float

    def codes(self, w: np.ndarray) -> np.ndarray:
        x = w.astype(np.float64) / self.step
        near = np.rint(x).astype(np.int64)
        if not self.lmbda:
            return near
        middle = self.bits.size // 2
        cost = self.lmbda * self.bits
        # Codes beyond those of the sample are the dearest there are.
        at, inner = (np.clip(j + middle, 0, self.bits.size - 1) for j in (near, near - np.sign(near)))
        further = np.square(x - near + np.sign(near)) + cost[inner] < np.square(x - near) + cost[at]
        return np.where(further, near - np.sign(near), near)

    def fitted(self, codes: np.ndarray) -> _Grid:
        """With the bits of these codes at their entropy."""
        middle = int(np.abs(codes).max(initial=0)) + 1
        counts = np.bincount(codes + middle, minlength=2 * middle + 1)
        return self._replace(bits=-np.log2(np.maximum(counts, 0.5) / codes.size))


def _first_grid(w: np.ndarray, config: EvenConfig) -> _Grid:
    """The grid whose error on some weights is about ``rtol``."""
    power = float(np.square(w, dtype=np.float64).mean()) ** 0.5
    grid = _Grid(config.rtol * power * math.sqrt(12), np.ones(1), 0.0)
    for _ in range(_FITS):
        codes = grid.codes(w)
        error = float(np.square(codes * grid.step - w).mean()) ** 0.5
        wider = config.rtol * power / error if error else 1.0
        grid = grid.fitted(codes)._replace(step=grid.step * min(max(wider, 0.5), 2.0), lmbda=config.lmbda)
    return grid


def _sample(w: np.ndarray) -> np.ndarray:
    stride = max(1, w.size // _SAMPLE)
    return w[::stride].astype(np.float64)


def even_rate(weight: Any, config: EvenConfig) -> float:
    """About how many bytes :func:`even_levels` makes of a leaf: the entropy of a sample's codes. Not traceable."""
    w = np.asarray(weight).reshape(-1)
    w = w[loose(w, fixed_levels([w]))]
    if not w.size or not np.any(w):
        return 0.0
    sample = _sample(w)
    grid = _first_grid(sample, config)
    counts = np.unique(grid.codes(sample), return_counts=True)[1]
    share = counts / counts.sum()
    return w.size * float(-(share @ np.log2(share))) / 8


def even_levels(params: Any, rules: Sequence[Rule[EvenConfig | float]] | None = None, *, config: EvenConfig | None = None) -> Any:
    """Entropy-coded uniform quantization: every chosen leaf on the widest grid that keeps its relative error. Not traceable.

    Zeros stay zero; sentinels (:func:`bqjax.kmeans.fixed_levels.fixed_levels`) are levels of their own, and count in no error.

    Args:
      params: pytree of arrays, concrete.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is a config or an ``rtol``. Without
        rules, floating-point leaves of two or more dimensions are taken.
      config: for leaves whose rule has no setting; None is ``EvenConfig()``.

    Returns:
      The tree with an :class:`bqjax.core.leaves.Affine` of one scale for every chosen leaf, or, where codes exceed 8 bits or there
      are sentinels, a :class:`bqjax.core.leaves.Clustered` of ``d = 1``. A leaf whose dtype, or 65,535 levels, cannot keep its
      ``rtol`` stays as it was.

    Raises:
      ValueError: integer leaves; rules with groups; NaN or infinite weights; whatever :func:`bqjax.core.rules.select` refuses.

    Example:
      >>> params = {"w": np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)}
      >>> leaf = even_levels(params, config=EvenConfig(rtol=0.1))["w"]
      >>> error = np.linalg.norm(leaf.decode() - params["w"]) / np.linalg.norm(params["w"])
      >>> leaf.bits, bool(0.098 < error <= 0.1)
      (5, True)
    """
    leaves, new = named_leaves(params), {}
    for name, rule in select(params, rules).taken.items():
        leaf = leaves[name]
        if isinstance(leaf, jax.core.Tracer):
            raise ValueError(f"leaf {name!r} is traced: even_levels needs concrete weights")
        if rule.group is not None:
            raise ValueError(f"leaf {name!r} is in group {rule.group!r}, but steps are not shared: take group out of the rule")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"leaf {name!r} is of integers already, {leaf.dtype}: skip it, Rule({name!r}, skip=True)")
        check_finite(name, leaf)
        setting = rule.setting if rule.setting is not None else config or EvenConfig()
        setting = setting if isinstance(setting, EvenConfig) else EvenConfig(rtol=setting)
        new[name] = _even(np.asarray(leaf), setting)
    return replace(params, new)


def _even(weight: np.ndarray, config: EvenConfig) -> Any:
    """The leaf on a grid, or as it was."""
    flat = weight.reshape(-1)
    levels = fixed_levels([flat])
    levels = levels[levels != 0]
    free = loose(flat, levels) if levels.size else None
    w = flat if free is None else flat[free]
    found = _codes(w, config)
    if found is None:
        return weight
    codes, step = found
    largest = int(np.abs(codes).max(initial=0))
    if free is None and largest <= 127:
        bits = max(largest.bit_length() + 1, 2)
        return Affine(
            codes.astype(np.int8).reshape(weight.shape), np.asarray(step), np.zeros((), np.int32), None, weight.dtype, bits
        )
    values = _values(np.arange(-largest, largest + 1), step, weight.dtype)
    codebook, indices = trim_codebook(values, codes.astype(np.int32) + largest)
    if free is not None:
        codebook, indices = trim_codebook(*joined(flat, levels, free, codebook, indices))
    return Clustered(indices, codebook[:, None], weight.shape, weight.dtype)


def _values(codes: np.ndarray, step: np.float32, dtype: np.dtype) -> np.ndarray:
    return (codes.astype(np.float32) * step).astype(dtype)


def _codes(w: np.ndarray, config: EvenConfig) -> tuple[np.ndarray, np.float32] | None:
    """Codes int16 ``[n]`` and step whose error on all weights is at most ``rtol``; None where no grid of few enough levels is."""
    codes = np.zeros(w.size, np.int16)
    pieces = [slice(start, start + _PIECE) for start in range(0, w.size, _PIECE)]
    power = sum(float(np.square(w[p], dtype=np.float64).sum()) for p in pieces)
    if not power:
        return codes, np.float32(1)
    if not math.isfinite(power):
        return None
    grid = _first_grid(_sample(w) if np.any(_sample(w)) else w.astype(np.float64), config)
    largest = max(float(np.abs(w[p]).max()) for p in pieces)
    for _ in range(_TRIES):
        step = np.float32(grid.step)
        if not np.finfo(np.float32).tiny <= step < math.inf or largest / float(step) > _MOST:
            return None
        grid, error = grid._replace(step=float(step)), 0.0
        for p in pieces:
            codes[p] = grid.codes(w[p])
            error += float(np.square(_values(codes[p], step, w.dtype).astype(np.float64) - w[p].astype(np.float64)).sum())
        ratio = config.rtol * math.sqrt(power / error) if error else math.inf
        if ratio >= 1:
            return codes, step
        grid = grid._replace(step=grid.step * max(0.5, min(0.998 * ratio, 0.998)))
    return None
