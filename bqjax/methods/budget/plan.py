"""Entropy-constrained scalar or vector quantization, layer by layer, with the settings that a plan gives each layer.

Plans are made by :mod:`bqjax.methods.budget.search`, or by hand.
"""

from __future__ import annotations

import glob
import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any

import jax
import numpy as np

from bqjax.core.leaves import Clustered, CompressedLeaf, mask_zeros, trim_codebook
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.ecvq import ecvq_refine
from bqjax.kmeans.fixed_levels import pruned
from bqjax.methods.base import Compressed
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import BinConfig, gaussian_bins
from bqjax.methods.gwk.cluster import gwk_cluster
from bqjax.methods.gwk.config import GWKConfig
from bqjax.sensitivity.task_statistics import task_importance

__all__ = ["Blocks", "BudgetConfig", "Layer", "Planned", "Setting", "Values", "compress_layer", "weights_importance"]

# A codebook is rounded to float16 where no entry moves by more than this share of the largest: as little as 11 bits do.
_HALF_ERROR = 2.0**-11


@dataclass(frozen=True, kw_only=True)
class Values:
    """Entropy-constrained scalar quantization from Gaussian bins (see :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq`).

    Attributes:
      bins: to start from; a positive ``lmbda`` leaves fewer.
      lmbda: Lagrangian weight of a bit.
      sigma_scale: factor on the standard deviation that places the first bins.
    """

    bins: int = 16
    lmbda: float = 0.0
    sigma_scale: float = 1.6

    def __post_init__(self) -> None:
        BinConfig(n_bins=self.bins, sigma_scale=self.sigma_scale)
        _check_lmbda(self.lmbda)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Entropy-constrained vector quantization from product quantization (see :func:`bqjax.methods.gwk.cluster.gwk_cluster`).

    Attributes:
      d: weights of a block.
      bits: of an index at first; a positive ``lmbda`` leaves fewer.
      lmbda: Lagrangian weight of a bit, see :func:`bqjax.kmeans.ecvq.ecvq_refine`; at 0 the blocks stay as clustered.
    """

    d: int = 2
    bits: int = 6
    lmbda: float = 0.0

    def __post_init__(self) -> None:
        self.config("none")
        _check_lmbda(self.lmbda)

    def config(self, weighting: Any) -> GWKConfig:
        """The clustering that blocks start from."""
        return GWKConfig(bits=self.bits, cv=self.d, pw=self.d, weighting=weighting)


def _check_lmbda(lmbda: float) -> None:
    if not (lmbda >= 0 and np.isfinite(lmbda)):
        raise ValueError(f"lmbda must be finite and not negative, got {lmbda}")


Setting = Values | Blocks


@dataclass(frozen=True)
class Layer:
    """One leaf, or several that share a codebook, and how they are stored."""

    names: tuple[str, ...]
    setting: Setting

    def __post_init__(self) -> None:
        if not self.names or isinstance(self.names, str):
            raise ValueError(f"a layer's names are a tuple of at least one leaf's name, got {self.names!r}")


def weights_importance(task: Task, *, key: jax.Array, draws: int) -> dict[str, np.ndarray]:
    """How much each weight matters to the outputs, see :func:`~bqjax.sensitivity.task_statistics.task_importance`.

    All the same where the task has no outputs. Of all leaves of floating point at once, so that a plan finds the very numbers
    that it was made by.
    """
    if task.outputs is None:
        return {name: np.ones(np.shape(leaf), np.float32) for name, leaf in named_leaves(task.params).items()}
    return task_importance(task, key=key, draws=draws)


def compress_layer(
    params: Any,
    layer: Layer,
    importance: Mapping[str, Any],
    *,
    key: jax.Array,
    floor: float = 0.02,
    iterations: int = 20,
    starts: dict[Any, Clustered] | None = None,
) -> dict[str, CompressedLeaf]:
    """Entropy-constrained quantization of one layer: its compressed leaves by name.

    Args:
      params: parameters, concrete.
      layer: leaves and setting.
      importance: by leaf name, see :func:`weights_importance`.
      key: a ``jax.random`` key; draws depend on it, the layer's names and its block size and bits, not on ``lmbda``.
      floor, iterations: see :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq`.
      starts: keeps blocks as they were clustered, which do not depend on ``lmbda``, for further layers of the same leaf; grows.

    Raises:
      ValueError: a leaf that does not exist or cannot be compressed so; the message names it.
    """
    leaves = named_leaves(params)
    for name in layer.names:
        if name not in leaves:
            replace(params, {name: None})  # says which names there are
        if not np.any(importance[name]):
            importance = {**importance, name: np.ones_like(importance[name])}  # seen by no example: all the same
    own = {name: leaves[name] for name in layer.names}
    group = layer.names[0] if len(own) > 1 else None
    setting = layer.setting
    if isinstance(setting, Values):
        start = BinConfig(n_bins=setting.bins, sigma_scale=setting.sigma_scale)
        stats = gaussian_bins(own, start, [Rule(glob.escape(name), group=group) for name in own])
        tree = bin_and_quant_ecsq(own, stats, importance, setting.lmbda, floor=floor, iterations=iterations)
        return {name: _with_short_codebook(tree[name]) for name in own}
    if group is not None:
        raise ValueError(f"leaves {', '.join(own)} share blocks, which one leaf alone can have: give each a layer of its own")
    ((name, leaf),) = own.items()
    key = jax.random.fold_in(key, zlib.crc32(f"{name} {operator.index(setting.d)} {setting.bits}".encode()))
    starts = {} if starts is None else starts
    at = name, setting.d, setting.bits
    if at not in starts:
        weighting = {name: np.asarray(importance[name]) + floor * float(np.mean(importance[name]))}
        tree, _ = gwk_cluster(own, weighting, key=key, config=setting.config("coordinate"), rules=[Rule(glob.escape(name))])
        starts[at] = tree[name]
    made = starts[at]
    if setting.lmbda:
        made = ecvq_refine(leaf, importance[name], made, setting.lmbda, floor=floor, iterations=iterations)
    else:
        codebook, indices = trim_codebook(made.codebook, made.indices)
        made = with_fields(made, codebook=codebook, indices=indices)
    short, kept = _with_short_codebook(made), pruned(leaf)
    return {name: short if kept is None else mask_zeros(short, kept)}


def _with_short_codebook(leaf: Clustered) -> Clustered:
    """The codebook in float16 where that changes it by no more than float16's own rounding of its largest entry."""
    codebook = np.asarray(leaf.codebook)
    if codebook.dtype != np.float32:
        return leaf
    with np.errstate(over="ignore"):
        short = codebook.astype(np.float16)
    if not np.abs(short.astype(np.float32) - codebook).max() <= _HALF_ERROR * np.abs(codebook).max():
        return leaf
    return with_fields(leaf, codebook=short)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Entropy-constrained quantization with the settings that a plan gives each layer.

    Attributes:
      layers: what is compressed and how; a leaf can be named once, other leaves are left as they are.
      draws: for the importance of weights.
      floor, iterations: see :func:`bqjax.methods.bins.ecsq.bin_and_quant_ecsq`.
    """

    layers: Sequence[Layer]
    draws: int = 8
    floor: float = 0.02
    iterations: int = 20
    label: str = "planned"

    def __post_init__(self) -> None:
        names = [name for layer in self.layers for name in layer.names]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"leaf {name!r} is in two layers of the plan: name it once")

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        names = [name for layer in self.layers for name in layer.names]
        if not names:
            return Compressed(task.params)
        replace(task.params, dict.fromkeys(names))  # names the leaf that does not exist
        importance = weights_importance(task, key=key, draws=self.draws)
        new: dict[str, CompressedLeaf] = {}
        for i, layer in enumerate(self.layers):
            new.update(compress_layer(task.params, layer, importance, key=key, floor=self.floor, iterations=self.iterations))
            if progress:
                progress(i + 1, len(self.layers), ", ".join(layer.names))
        return Compressed(replace(task.params, new))


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What options the layers are offered, and how they are measured.

    Attributes:
      bins: values that leaves start from.
      blocks: ``(d, bits)`` of the blocks that leaves start from; those too large for a leaf are not offered to it.
      exponents: exponents ``e``; a leaf is offered each ``lmbda = 2^e u``, with ``u`` half its mean importance times its variance:
        what a weight's removal costs on average.
      vectors: values offered to leaves of fewer than two dimensions, which share a codebook with those of their kind.
      draws, floor, iterations: see :class:`Planned`.
      refine: how often values of ``lmbda`` halfway to the neighbours of the plan's are measured, and planned with anew.
    """

    bins: tuple[int, ...] = (16,)
    blocks: tuple[tuple[int, int], ...] = ((2, 6), (4, 8))
    exponents: tuple[float, ...] = (-9.0, -7.0, -5.0, -3.0, -1.0)
    vectors: tuple[int, ...] = (32, 128)
    draws: int = 8
    floor: float = 0.02
    iterations: int = 20
    refine: int = 3

    def __post_init__(self) -> None:
        if not self.exponents or list(self.exponents) != sorted(set(self.exponents)):
            raise ValueError(f"exponents must be ascending, at least one, got {self.exponents}")
        if not self.bins and not self.blocks:
            raise ValueError("neither bins nor blocks are offered: a plan could only leave everything as it is")
        if self.refine < 0:
            raise ValueError(f"refine must not be negative, got {self.refine}")
        for n in (*self.bins, *self.vectors):
            Values(bins=n)
        for d, bits in self.blocks:
            Blocks(d=d, bits=bits)
        Planned(layers=(), draws=self.draws, floor=self.floor, iterations=self.iterations)
