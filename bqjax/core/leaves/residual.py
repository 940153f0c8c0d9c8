"""Residual (additive) quantization, weights as sums: each stage holds what the stages before it left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core import blocks
from bqjax.core.leaves.base import CompressedLeaf, Stream
from bqjax.core.leaves.clustered import Clustered

__all__ = ["MAX_STAGES", "Residual"]

MAX_STAGES = 64


@partial(jax.tree_util.register_dataclass, data_fields=["stages"], meta_fields=[])
@dataclass(frozen=True)
class Residual(CompressedLeaf):
    """The sum of clustered leaves: ``w_i = sum_t c_t[a_t(i)]`` for every block ``i``.

    Sums are in float32 (float64 where a codebook is), from the first stage to the last, and then rounded to ``dtype`` once.

    Attributes:
      stages: 1 to 64 clustered leaves of one floating-point dtype, one shape and one axis order, in no group; numbers of
        entries and of weights a block may differ.
    """

    stages: tuple[Clustered, ...]

    def __init__(self, stages: Sequence[Clustered]):
        object.__setattr__(self, "stages", tuple(stages))

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.stages[0].shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.stages[0].dtype

    def decode(self) -> jax.Array:
        total: Any = None
        for stage in self.stages:
            entries = stage.entries()
            values = entries.astype(jnp.promote_types(entries.dtype, jnp.float32))[jnp.asarray(stage.indices)]
            part = blocks.from_blocks(values, stage.shape, stage.axis_order)
            total = part if total is None else total + part
        return total.astype(self.dtype)

    def streams(self) -> tuple[Stream, ...]:
        return tuple(stream for stage in self.stages for stream in stage.streams())

    def table_bits(self) -> int:
        return sum(stage.table_bits() for stage in self.stages)

    def validate(self, name: str = "leaf") -> None:
        if not 1 <= len(self.stages) <= MAX_STAGES:
            raise ValueError(f"{name}: a residual leaf has 1 to {MAX_STAGES} stages, got {len(self.stages)}")
        for number, stage in enumerate(self.stages):
            stage.validate(f"{name}, stage {number}")
            if stage.group is not None:
                raise ValueError(f"{name}, stage {number}: a stage shares no codebook, its group is {stage.group!r}")
            mine = stage.shape, stage.dtype, stage.axis_order
            first = self.stages[0].shape, self.stages[0].dtype, self.stages[0].axis_order
            if mine != first:
                raise ValueError(f"{name}, stage {number}: shape, dtype and axis order {mine} are not the first stage's, {first}")
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"{name}: stages add up to floating-point weights, got {self.dtype}")
