"""GWK behind the interface of :mod:`bqjax.methods.base`: blocks of weights, without retraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax

from bqjax.core.leaves import mask_zeros
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule, select
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.fixed_levels import pruned
from bqjax.methods.base import Compressed
from bqjax.methods.gwk.cluster import GWKConfig, gwk_cluster
from bqjax.sensitivity.task_statistics import task_gradient

__all__ = ["GWK"]


@dataclass(frozen=True, kw_only=True)
class GWK:
    """Product quantization of blocks (see :func:`bqjax.methods.gwk.cluster.gwk_cluster`), weighted by the loss's gradient or not.

    Zeros of pruned leaves, of which 5 % or more of the weights are zero, stay zeros (:class:`bqjax.core.leaves.Masked`).

    Attributes:
      config: bits, block sizes and weighting; ``weighting="none"`` is plain product quantization and needs no data.
      rules: which leaves, with a config or a number of bits of their own.
    """

    config: GWKConfig = field(default_factory=GWKConfig)
    rules: Sequence[Rule[GWKConfig | int]] | None = None
    label: str = "GWK"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        gradients = None
        if self.config.weighting != "none":
            found = task_gradient(task)
            gradients = replace(task.params, {name: found[name] for name in select(task.params, self.rules).taken})
        tree, info = gwk_cluster(task.params, gradients, self.rules, key=key, config=self.config)
        before, after = named_leaves(task.params), named_leaves(tree)
        zeros = {name: kept for name in info if (kept := pruned(before[name])) is not None}
        return Compressed(replace(tree, {name: mask_zeros(after[name], kept) for name, kept in zeros.items()}))
