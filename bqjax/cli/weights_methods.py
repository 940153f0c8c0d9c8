"""What ``bqjax compress WEIGHTS`` can do to a leaf without data: a method, its main setting, and what bounds it."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.cli.weights_report import measured
from bqjax.core.leaves import is_compressed
from bqjax.core.rules import Rule
from bqjax.core.tree import check_finite
from bqjax.kmeans.fixed_levels import fixed_levels
from bqjax.methods.baselines.even import EvenConfig, even_levels
from bqjax.methods.baselines.product import ProductConfig, product_quantize
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize
from bqjax.methods.baselines.weight_blocks import check_blocks
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.gaussian import BinConfig, gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant

__all__ = ["METHODS", "Done", "WeightMethod"]

METHODS = ("even", "kmeans", "gaussian-bins", "int8", "int4", "pq", "rq")
_BITS = {"int8": 8, "int4": 4}
_BLOCK: dict[str, ProductConfig | ResidualConfig] = {"pq": ProductConfig(), "rq": ResidualConfig()}
_BINS = 16  # of k-means and Gaussian bins
_SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # of k-means where an error bounds it
_NOTED = {"int8": 256, "int4": 16, "pq": 16, "rq": 32}  # values of k-means that stands in


@dataclass(frozen=True)
class Done:
    """A leaf after a method.

    Attributes:
      leaf: compressed, or the array where it was left.
      note: what was done in place of the method, and why; empty where the method did it.
    """

    leaf: Any
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class WeightMethod:
    """A method without data and its main setting.

    Attributes:
      name: one of :data:`METHODS`.
      bins: values a leaf, of kmeans and gaussian-bins; None is 16, or of kmeans, where ``rtol`` is given, as few as keep it.
      sigma_scale: of gaussian-bins.
      rtol: bound on each leaf's relative error; None is 0.05 for even, and no bound for the others.
      lmbda: of even, see :class:`bqjax.methods.baselines.even.EvenConfig`; None is its default.
    """

    name: str = "even"
    bins: int | None = None
    sigma_scale: float = 1.0
    rtol: float | None = None
    lmbda: float | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"--method {self.name!r}: weights without a model are compressed by {', '.join(METHODS)}")
        for option, value, unset, methods in (
            ("--bins", self.bins, None, ("kmeans", "gaussian-bins")),
            ("--sigma-scale", self.sigma_scale, 1.0, ("gaussian-bins",)),
            ("--lmbda", self.lmbda, None, ("even",)),
        ):
            if value != unset and self.name not in methods:
                raise ValueError(f"{option} is a setting of --method {' or '.join(methods)}, not of {self.name}")
        self.even  # noqa: B018 (checks rtol and lmbda)
        if self.name == "gaussian-bins":
            BinConfig(n_bins=self.bins if self.bins is not None else _BINS, sigma_scale=self.sigma_scale)

    @property
    def even(self) -> EvenConfig:
        """Settings of even levels."""
        given = {"rtol": self.rtol, "lmbda": self.lmbda}
        return EvenConfig(**{key: value for key, value in given.items() if value is not None})

    @property
    def described(self) -> str:
        """Name and setting, for the report and the file."""
        bounded = "" if self.rtol is None else f", each leaf's relative error at most {self.rtol:g}"
        if self.name == "even":
            return f"even levels, each leaf's relative error at most {self.even.rtol:g}, lmbda {self.even.lmbda:g}"
        if self.name == "kmeans" and self.bins is None and self.rtol is not None:
            return f"k-means{bounded}"
        return self.name + (f" {self.bins or _BINS}" if self.name in ("kmeans", "gaussian-bins") else "") + bounded

    def compress(self, name: str, weight: np.ndarray) -> Done:
        """One leaf.

        Raises:
          ValueError: naming the leaf, where it holds NaN or infinities.
        """
        check_finite(name, weight)
        done = self._one(name, weight)
        if self.rtol is None or self.name == "even" or not is_compressed(done.leaf):
            return done
        if (found := measured(name, weight, done.leaf).error) > self.rtol:
            return Done(weight, f"left as it was: its relative error would be {100 * found:.1f} %, above --rtol")
        return done

    def _one(self, name: str, weight: np.ndarray) -> Done:
        floating = jnp.issubdtype(weight.dtype, jnp.floating)
        if self.name in ("kmeans", "gaussian-bins"):
            return Done(self._levels(name, weight, floating))
        if not floating:
            return Done(_apply(name, weight, lambda tree, rules: kmeans_share(tree, _BINS, rules)), f"integers: k-means {_BINS}")
        if self.name == "even":
            leaf = _apply(name, weight, lambda tree, rules: even_levels(tree, rules, config=self.even))
            return Done(leaf, "" if is_compressed(leaf) else "left as it was: no 65,535 even levels keep its error within --rtol")
        fixed = fixed_levels([weight])
        why = ""
        if np.any(fixed != 0):
            why = "sentinels"
        elif self.name in _BLOCK:
            try:
                check_blocks(name, weight, _BLOCK[self.name].k, _BLOCK[self.name].d)
            except ValueError:
                why = "too few blocks"
        if why:
            k = _NOTED[self.name]
            return Done(_apply(name, weight, lambda tree, rules: kmeans_share(tree, k, rules)), f"{why}: k-means {k}")
        if self.name in _BITS:
            config = PTQConfig(bits=_BITS[self.name])
            return Done(_apply(name, weight, lambda tree, rules: quantize(tree, rules, config=config)))
        blocks: Any = product_quantize if self.name == "pq" else residual_quantize
        return Done(_apply(name, weight, lambda tree, rules: blocks(tree, rules, key=jax.random.key(0), config=_BLOCK[self.name])))

    def _levels(self, name: str, weight: np.ndarray, floating: bool) -> Any:
        bins = self.bins if self.bins is not None else _BINS
        if self.name == "gaussian-bins":
            config = BinConfig(n_bins=bins, sigma_scale=self.sigma_scale)
            return _apply(name, weight, lambda tree, rules: bin_and_quant(tree, gaussian_bins(tree, config, rules)))
        if self.bins is not None or self.rtol is None:
            return _apply(name, weight, lambda tree, rules: kmeans_share(tree, bins, rules))
        low, high, best = 0, len(_SIZES) - 1, None
        while low <= high:  # as if the error never grew with k; what is taken was measured
            middle = (low + high) // 2
            leaf = _apply(name, weight, lambda tree, rules, k=_SIZES[middle]: kmeans_share(tree, k, rules))
            if measured(name, weight, leaf).error <= self.rtol:
                best, high = leaf, middle - 1
            else:
                low = middle + 1
        return leaf if best is None else best


def _apply(name: str, weight: np.ndarray, method: Any) -> Any:
    return method({name: weight}, [Rule[Any](glob.escape(name))])[name]
