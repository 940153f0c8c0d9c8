"""Methods of this room behind the interface of :mod:`bqjax.methods.base`: none of them looks at the task's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax

from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.methods.base import Compressed
from bqjax.methods.baselines.deep_compression import DeepCompressionConfig, deep_compress
from bqjax.methods.baselines.diba import DiBAConfig, diba
from bqjax.methods.baselines.product import ProductConfig, binarize, product_quantize
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share

__all__ = ["PTQ", "Binary", "DeepCompression", "DiBA", "KMeans", "ProductQuantization", "ResidualQuantization"]


@dataclass(frozen=True, kw_only=True)
class PTQ:
    """Post-training quantization of weights (see :func:`bqjax.methods.baselines.ptq.quantize`)."""

    config: PTQConfig = field(default_factory=PTQConfig)
    rules: Sequence[Rule[PTQConfig | int]] | None = None
    label: str = "PTQ"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(quantize(task.params, self.rules, config=self.config))


@dataclass(frozen=True, kw_only=True)
class ProductQuantization:
    """Blocks of weights without gradients (see :func:`bqjax.methods.baselines.product.product_quantize`)."""

    config: ProductConfig = field(default_factory=ProductConfig)
    rules: Sequence[Rule[ProductConfig]] | None = None
    label: str = "PQ"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(product_quantize(task.params, self.rules, key=key, config=self.config))


@dataclass(frozen=True, kw_only=True)
class ResidualQuantization:
    """Sums of blocks (see :func:`bqjax.methods.baselines.residual.residual_quantize`)."""

    config: ResidualConfig = field(default_factory=ResidualConfig)
    rules: Sequence[Rule[ResidualConfig]] | None = None
    label: str = "RQ"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(residual_quantize(task.params, self.rules, key=key, config=self.config))


@dataclass(frozen=True, kw_only=True)
class DiBA:
    """Diagonal and binary factors (see :func:`bqjax.methods.baselines.diba.diba`)."""

    config: DiBAConfig = field(default_factory=DiBAConfig)
    rules: Sequence[Rule[DiBAConfig]] | None = None
    label: str = "DiBA"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(diba(task.params, self.rules, key=key, config=self.config))


@dataclass(frozen=True, kw_only=True)
class Binary:
    """Signs with a scale for each leaf, or for each slice of ``axis`` (see :func:`bqjax.methods.baselines.product.binarize`)."""

    axis: int | None = -1
    rules: Sequence[Rule[None]] | None = None
    label: str = "binary"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(binarize(task.params, self.rules, axis=self.axis))


@dataclass(frozen=True, kw_only=True)
class DeepCompression:
    """Pruning and shared values without retraining (see :func:`bqjax.methods.baselines.deep_compression.deep_compress`)."""

    config: DeepCompressionConfig = field(default_factory=DeepCompressionConfig)
    rules: Sequence[Rule[DeepCompressionConfig]] | None = None
    label: str = "Deep Compression"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(deep_compress(task.params, self.rules, config=self.config))


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """k-means weight sharing (see :func:`bqjax.methods.baselines.weight_sharing.kmeans_share`); needs no data."""

    k: int = 16
    rules: Sequence[Rule[int]] | None = None
    label: str = "k-means"

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        return Compressed(kmeans_share(task.params, self.k, self.rules))
