"""The methods of this room behind the interface of :mod:`bqjax.methods.base`: none of them looks at the task's data."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.methods.base import Compressed
from bqjax.methods.baselines.deep_compression import DeepCompressionConfig, deep_compress
from bqjax.methods.baselines.diba import DiBAConfig, diba_factorize
from bqjax.methods.baselines.even import EvenConfig, even_levels
from bqjax.methods.baselines.product import ProductConfig, binarize, product_quantize
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share

__all__ = [
    "PTQ",
    "Binary",
    "DataFree",
    "DeepCompression",
    "DiBA",
    "EvenLevels",
    "KMeans",
    "ProductQuantization",
    "ResidualQuantization",
]


class DataFree(abc.ABC):
    """A method that is a function of the parameters alone; methods are frozen dataclasses of their settings."""

    @abc.abstractmethod
    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        """The compressed tree of some parameters."""

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        """See :class:`bqjax.methods.base.Method`."""
        return Compressed(self.compress_params(task.params, key=key))


@dataclass(frozen=True, kw_only=True)
class PTQ(DataFree):
    """Post-training quantization to integers, round to nearest (see :func:`bqjax.methods.baselines.ptq.quantize`)."""

    config: PTQConfig = field(default_factory=PTQConfig)
    rules: Sequence[Rule[PTQConfig | int]] | None = None
    label: str = "PTQ"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return quantize(params, self.rules, config=self.config)


@dataclass(frozen=True, kw_only=True)
class ProductQuantization(DataFree):
    """Product quantization, k-means of blocks (see :func:`bqjax.methods.baselines.product.product_quantize`)."""

    config: ProductConfig = field(default_factory=ProductConfig)
    rules: Sequence[Rule[ProductConfig]] | None = None
    label: str = "PQ"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return product_quantize(params, self.rules, key=key, config=self.config)


@dataclass(frozen=True, kw_only=True)
class ResidualQuantization(DataFree):
    """Residual (additive) quantization, sums of blocks (see :func:`bqjax.methods.baselines.residual.residual_quantize`)."""

    config: ResidualConfig = field(default_factory=ResidualConfig)
    rules: Sequence[Rule[ResidualConfig]] | None = None
    label: str = "RQ"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return residual_quantize(params, self.rules, key=key, config=self.config)


@dataclass(frozen=True, kw_only=True)
class DiBA(DataFree):
    """Diagonal and binary matrix factors (see :func:`bqjax.methods.baselines.diba.diba_factorize`)."""

    config: DiBAConfig = field(default_factory=DiBAConfig)
    rules: Sequence[Rule[DiBAConfig]] | None = None
    label: str = "DiBA"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return diba_factorize(params, self.rules, key=key, config=self.config)


@dataclass(frozen=True, kw_only=True)
class Binary(DataFree):
    """Binarization: signs with a scale for each leaf, or for each slice of ``axis``.

    See :func:`bqjax.methods.baselines.product.binarize`.
    """

    axis: int | None = -1
    rules: Sequence[Rule[None]] | None = None
    label: str = "binary"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return binarize(params, self.rules, axis=self.axis)


@dataclass(frozen=True, kw_only=True)
class DeepCompression(DataFree):
    """Magnitude pruning and k-means weight sharing, without retraining.

    See :func:`bqjax.methods.baselines.deep_compression.deep_compress`.
    """

    config: DeepCompressionConfig = field(default_factory=DeepCompressionConfig)
    rules: Sequence[Rule[DeepCompressionConfig]] | None = None
    label: str = "Deep Compression"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return deep_compress(params, self.rules, config=self.config)


@dataclass(frozen=True, kw_only=True)
class KMeans(DataFree):
    """Palettization: k-means weight sharing, a lookup table a leaf.

    See :func:`bqjax.methods.baselines.weight_sharing.kmeans_share`.
    """

    k: int = 16
    rules: Sequence[Rule[int]] | None = None
    label: str = "k-means"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return kmeans_share(params, self.k, self.rules)


@dataclass(frozen=True, kw_only=True)
class EvenLevels(DataFree):
    """Entropy-coded uniform quantization at a relative error, the default of ``bqjax compress WEIGHTS``.

    See :func:`bqjax.methods.baselines.even.even_levels`.
    """

    config: EvenConfig = field(default_factory=EvenConfig)
    rules: Sequence[Rule[EvenConfig | float]] | None = None
    label: str = "even levels"

    def compress_params(self, params: Any, *, key: jax.Array) -> Any:
        return even_levels(params, self.rules, config=self.config)
