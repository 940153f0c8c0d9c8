"""Networks that start from others: weights from a run's file, leaves that do not train, and weights pruned while the rest does."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from bqjax.adapters.safetensors import read_weights, write_weights
from bqjax.core.tree import named_leaves, replace
from bqjax.methods.baselines.pruning import GradualPruning

__all__ = ["Pruning", "frozen_leaves", "load_network", "pruned_leaves", "save_network", "with_frozen_statistics"]

_STORED = (nnx.Param, nnx.BatchStat)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Gradual pruning in the float phase, see :class:`bqjax.methods.baselines.pruning.GradualPruning`.

    Attributes:
      sparsity: part of each leaf's weights that is zero in the end, in [0, 1).
      initial: part that is zero at the start; equal to ``sparsity`` for a network that is pruned already.
      begin, end: between which parts of the phase it grows.
      every: steps between one choice of weights and the next.
      leaves: patterns of the leaves that are pruned; those that are frozen are left alone.

    Raises:
      ValueError: a number is out of range, or there are no patterns.
    """

    sparsity: float = 0.7
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.6
    every: int = 20
    leaves: tuple[str, ...] = ("*/kernel",)

    def __post_init__(self) -> None:
        if not (0 <= self.begin < self.end <= 1):
            raise ValueError(f"pruning begins and ends at parts of the phase, begin before end, got {self.begin} and {self.end}")
        if not self.leaves:
            raise ValueError("pruning needs patterns of leaves, such as */kernel")
        self.schedule(1)  # which checks the rest

    def schedule(self, total: int) -> GradualPruning:
        """The schedule of a phase of ``total`` steps."""
        begin = math.floor(self.begin * total)
        end = max(begin + 1, math.floor(self.end * total))
        return GradualPruning(final=self.sparsity, initial=self.initial, begin=begin, end=end, every=self.every)


def save_network(path: str | os.PathLike[str], model: nnx.Module) -> None:
    """Writes parameters and BatchNorm's running statistics by their names as a safetensors file; one that is there is replaced."""
    write_weights(path, named_leaves(nnx.to_pure_dict(nnx.state(model, _STORED))), force=True)


def load_network(model: nnx.Module, path: str | os.PathLike[str], anew: Sequence[str] = ()) -> nnx.Module:
    """A copy of the model with the weights of a file of :func:`save_network`.

    Args:
      model: says which leaves there are, and has those that are drawn anew.
      path: of the file.
      anew: patterns of leaves that stay as they are in ``model``, and need not be in the file: a new head.

    Raises:
      ValueError: a pattern that matches no leaf; a leaf that the file does not have, or has in another shape; a tensor of the
        file that the network does not have. The message names it.
    """
    graph, stored, rest = nnx.split(model, _STORED, ...)
    pure = nnx.to_pure_dict(stored)
    leaves, found = named_leaves(pure), read_weights(path)
    drawn = _matched(list(leaves), anew, "anew")
    taken = {}
    for name, leaf in leaves.items():
        if name in drawn:
            continue
        shape = found[name].shape if name in found else None
        if shape != leaf.shape:
            has = "no such tensor" if shape is None else f"one of shape {shape}"
            raise ValueError(
                f"the network has a leaf {name!r} of shape {leaf.shape}, {os.fspath(path)} has {has}: name the network that the "
                f"file was written by, or draw the leaf anew (anew={name!r})"
            )
        taken[name] = found[name].astype(leaf.dtype)
    for name in found:
        if name not in leaves and not any(fnmatch.fnmatchcase(name, pattern) for pattern in anew):
            raise ValueError(f"{os.fspath(path)} has a tensor {name!r}, which the network does not have: it is of another network")
    return nnx.merge(graph, replace(pure, taken), nnx.to_pure_dict(rest))


def _matched(names: Sequence[str], patterns: Sequence[str], what: str) -> set[str]:
    """The names that a pattern matches; a pattern that matches none is an error."""
    matched: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            raise ValueError(f"{what}: pattern {pattern!r} matches no leaf; the leaves are {', '.join(names)}")
        matched |= hits
    return matched


def frozen_leaves(network: Any, patterns: Sequence[str]) -> set[str]:
    """Names of the leaves that do not train.

    Args:
      network: nested dict of parameters.
      patterns: shell-style patterns for whole names; ``*`` also matches ``/``: ``conv*`` takes all of ``conv1/kernel``, ...

    Raises:
      ValueError: a pattern that matches no leaf, or nothing is left to train.
    """
    names = list(named_leaves(network))
    frozen = _matched(names, patterns, "freeze")
    if len(frozen) == len(names):
        raise ValueError(f"freeze: {', '.join(patterns)} match all leaves, and nothing is left to train")
    return frozen


def with_frozen_statistics(model: Any, network: Any, patterns: Sequence[str]) -> Any:
    """The model, in training mode, whose frozen BatchNorm layers keep and use their running statistics.

    A layer is frozen where all of its parameters are: with statistics of the batch it would compute something else than in
    the network that it was taken from.
    """
    if not patterns:
        return model
    names, frozen = list(named_leaves(network)), frozen_leaves(network, patterns)

    def whole(path: tuple[Any, ...], node: Any) -> bool:
        prefix = "/".join(map(str, path)) + "/"
        inside = [name for name in names if name.startswith(prefix)]
        return isinstance(node, nnx.BatchNorm) and bool(inside) and frozen.issuperset(inside)

    return nnx.view(model, only=whole, use_running_average=True, raise_if_not_found=False)


def pruned_leaves(network: Any, pruning: Pruning, freeze: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the leaves that are pruned; frozen ones are left alone.

    Raises:
      ValueError: a pattern that matches no leaf of those that train.
    """
    frozen = frozen_leaves(network, freeze) if freeze else set()
    names = [name for name in named_leaves(network) if name not in frozen]
    taken = _matched(names, pruning.leaves, "pruning.leaves")
    return tuple(name for name in names if name in taken)
