"""The search within one leaf: measure every bin, split the most sensitive, repeat (figure 4 of the paper)."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bqjax.core.task import signed
from bqjax.methods.bins.config import SearchConfig, Step
from bqjax.methods.bins.gaussian import host_weights, moments, start_edges
from bqjax.methods.bins.sorted_weights import SortedWeights
from bqjax.sensitivity.perturb import Codebook, Noise, NoiseCandidate, Perturbation, Quantize

__all__ = ["LeafSearch"]


class LeafSearch:
    """Bins of one leaf or group, on their way from Gaussian bins to the result.

    Args:
      measure: ``measure(names, perturbation, candidates) -> [metrics]`` on the network with the leaves accepted so far in
        compressed form; None as perturbation gives the network as it is.
      names: the leaves that share the bins.
      params: the parameters that ``measure`` perturbs.
      config: settings.
      key: a ``jax.random`` key; draws depend on it, the names and the bin alone, not on the order of measuring.
      metric, rank: what thresholds speak of, and what ranks the bins.
    """

    def __init__(
        self,
        measure: Callable[..., Any],
        names: list[str],
        params: Any,
        config: SearchConfig,
        key: jax.Array,
        metric: str,
        rank: str,
    ):
        self._measure, self._names, self._config, self.metric, self.rank = measure, names, config, metric, rank
        values = host_weights(params, names)
        self.weights = SortedWeights(values)
        self._std = moments(values)[1]
        self._starts = [start_edges(values, start) for start in config.starts(self.weights.size)]
        self._key = jax.random.fold_in(key, zlib.crc32("\0".join(names).encode()))
        self._drops: dict[tuple[float, float], tuple[float, float]] = {}
        self.before = measure(names, None, [None])[0]
        self.magnitude: float | None = None
        if config.kind != "collapse":
            self.magnitude = config.magnitude or (0.5 if config.kind == "relative" else self._find_magnitude())

    def drop(self, metrics: Mapping[str, float], by: str | None = None) -> float:
        by = by or self.metric
        lost = float(signed(self.before, by) - signed(metrics, by))
        return lost if not math.isnan(lost) else math.inf

    def _candidates(self, lower: float, upper: float, magnitude: float, draws: int) -> list[NoiseCandidate]:
        dtype = self.weights.values.dtype.type
        bounds = zlib.crc32(f"{lower.hex()} {upper.hex()}".encode())
        keys = jax.random.split(jax.random.fold_in(self._key, bounds), draws)
        return [NoiseCandidate(dtype(lower), dtype(upper), dtype(magnitude), k) for k in keys]

    def _find_magnitude(self) -> float:
        """The largest level whose noise on the whole leaf stays below the tolerance; the smallest where none does."""
        config = self._config
        if config.tolerance is None:  # checked by the config; here for the type checker
            raise ValueError("no tolerance to find the magnitude by")
        found = config.levels[0] * self._std
        for level in config.levels:
            candidates = self._candidates(-math.inf, math.inf, level * self._std, config.draws)
            results = self._measure(self._names, Noise(config.kind), candidates)
            if np.mean([self.drop(m) for m in results]) >= config.tolerance:
                break
            found = level * self._std
        return found or 1.0  # a constant leaf has no scale; any noise does

    def _codebook(self, bins: list[tuple[float, float]], edges: np.ndarray, within: tuple[float, float]) -> Codebook:
        """The means of some bins; padded to one size, so that all of a leaf's candidates share a compilation."""
        dtype = self.weights.values.dtype.type
        pad = self._config.max_bins - len(bins)
        values = [self.weights.mean(a, b) for a, b in bins]
        padded = np.append(edges, np.full(pad, np.inf)).astype(dtype), np.array(values + values[-1:] * pad, dtype)
        return Codebook(*padded, dtype(within[0]), dtype(within[1]))

    def _measure_bins(self, bins: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Drop of the metric and of the ranking metric for every bin; only bins that are new are measured, in one call."""
        new = [b for b in bins if b not in self._drops]
        perturbation: Perturbation = Noise(self._config.kind)
        if self.magnitude is None:
            # Collapsing a bin is quantizing it alone, and so runs in the executable that quantizes the leaf.
            draws, perturbation = 1, Quantize()
            candidates: list[Any] = [self._codebook([b], np.empty(0), b) for b in new]
        else:
            draws = self._config.draws
            candidates = [c for b in new for c in self._candidates(*b, self.magnitude, draws)]
        if new:
            results = self._measure(self._names, perturbation, candidates)
            for i, b in enumerate(new):
                own = results[i * draws : (i + 1) * draws]
                drops = [[self.drop(m, by) for m in own] for by in (self.metric, self.rank)]
                self._drops[b] = float(np.mean(drops[0])), float(np.mean(drops[1]))
        return [self._drops[b] for b in bins]

    def _step(self, edges: np.ndarray) -> Step:
        bins = _bins(edges)
        drops = self._measure_bins(bins)
        metrics = self._measure(self._names, Quantize(), [self._codebook(bins, edges, (-math.inf, math.inf))])[0]
        drop, rank_drop = zip(*drops, strict=True)
        return Step(tuple(edges.tolist()), drop, rank_drop, metrics, self.weights.entropy(edges))

    def reaches_targets(self, step: Step) -> bool:
        """Whether targets are set and the leaf, compressed to these bins, meets them."""
        config = self._config
        targets = ((config.target_drop, self.metric), (config.target_rank_drop, self.rank))
        limits = [(limit, by) for limit, by in targets if limit is not None]
        return bool(limits) and all(self.drop(step.metrics, by) <= limit for limit, by in limits)

    def _path(self, edges: np.ndarray, report: Callable[[Step], None]) -> tuple[list[Step], str]:
        """Splits from one start until a stopping rule holds; the states, and the rule."""
        config = self._config
        steps = []
        while True:
            step = self._step(edges)
            steps.append(step)
            report(step)
            if config.lmbda is None and self.reaches_targets(step):
                return steps, "within the target"
            if config.tolerance is not None and max(step.bin_drops) <= config.tolerance:
                return steps, f"every bin within {config.tolerance:g}"
            if step.n_bins >= config.max_bins:
                return steps, f"{config.max_bins} bins"
            # The stable sort keeps equals in the order of the bins.
            order = sorted(range(step.n_bins), key=lambda i: -step.bin_rank_drops[i])
            bins = _bins(edges)
            edge = next((e for e in (self.weights.split(*bins[i]) for i in order) if e is not None), None)
            if edge is None:
                return steps, "as many bins as distinct values"
            edges = np.sort(np.append(edges, self.weights.values.dtype.type(edge)))

    def run(self, report: Callable[[Step], None]) -> tuple[list[list[Step]], Step, str]:
        """Searches from every start; gives all paths, the bins taken and why their path ended."""
        paths, ends = [], []
        for edges in self._starts:
            steps, reason = self._path(edges, report)
            paths.append(steps)
            ends.append((steps[-1], reason))
        lmbda = self._config.lmbda
        if lmbda is not None:
            ends = [(step, f"{step.n_bins} bins at lmbda {lmbda:g}") for steps in paths for step in steps]
        reached = [end for end in ends if self.reaches_targets(end[0])]

        def cost(end: tuple[Step, str]) -> float:
            step = end[0]
            if lmbda is not None:
                return self.drop(step.metrics, self.rank) + lmbda * step.entropy * self.weights.size
            return step.entropy if reached else self.drop(step.metrics, self.rank)

        return paths, *min(reached or ends, key=cost)


def _bins(edges: np.ndarray) -> list[tuple[float, float]]:
    return list(itertools.pairwise([-math.inf, *edges.tolist(), math.inf]))
