"""The sensitivity search of Bin & Quant over all leaves of a network: the bins whose loss costs most are split.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-A, III-B and figure 4. The paper leaves open the noise,
the number of draws and the order of stopping rules; what is chosen here are fields of
:class:`bqjax.methods.bins.config.SearchConfig`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core import tree
from bqjax.core.journal import Journal, digest
from bqjax.core.leaves import decode
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule, group_setting, grouped, select
from bqjax.core.task import Score, signed
from bqjax.methods.bins.config import LayerReport, SearchConfig, SearchInfo, Step
from bqjax.methods.bins.gaussian import Bins, host_weights
from bqjax.methods.bins.leaf_search import LeafSearch
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.processes import SharedJournal

__all__ = ["search_bins"]


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _choose_metric(metrics: Mapping[str, float], metric: str | None, rank_by: str | None) -> tuple[str, str]:
    if metric is None:
        metric = next(iter(metrics)) if len(metrics) == 1 else "accuracy"
    if rank_by is None:
        rank_by = "-loss" if "loss" in metrics else metric
    signed(metrics, metric), signed(metrics, rank_by)
    return metric, rank_by


def search_bins(
    score: Score,
    params: Any,
    batches: Sequence[Any],
    config: SearchConfig | None = None,
    *,
    key: jax.Array,
    rules: Sequence[Rule[SearchConfig]] | None = None,
    metric: str | None = None,
    rank_by: str | None = None,
    state_path: str | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Bins], SearchInfo]:
    """Sensitivity-driven scalar quantization: finds the bins of each leaf by what the network loses (III-A, III-B).

    Leaves, or groups that share bins, are taken in descending order of size. In each, Gaussian bins are perturbed one
    at a time, and the bin whose loss hurts most is split in the middle, until a stopping rule of the config holds. A
    leaf whose compression costs too much is left as it was; the leaves accepted before it stay compressed while the
    next are searched.

    Args:
      score: ``score(params, batch) -> (sums, count)``, traceable; see :data:`bqjax.core.task.Score`.
      params: parameters, any pytree, concrete.
      batches: calibration data. Report on other data.
      config: for leaves whose rule has no setting of its own.
      key: a ``jax.random`` key; the same key gives the same bins.
      rules: which leaves, with their own config and group.
      metric: what the thresholds speak of, e.g. ``"accuracy"`` or ``"-wer"``. None takes the only metric there is, or
        ``"accuracy"``.
      rank_by: what ranks the bins. None takes ``"-loss"`` where the score gives a loss (accuracy on a few hundred
        examples moves in coarse steps), else ``metric``.
      state_path: a file that keeps every measurement; a search that was interrupted goes on from it and ends in
        the same result.
      progress: called as the search goes on.

    Returns:
      ``(stats, info)``: bins of the accepted leaves for :func:`bqjax.methods.bins.quantize.bin_and_quant`, and the report.

    Raises:
      ValueError: no calibration examples; a score that is NaN on the unperturbed network; NaN or infinite weights; rules
        that match nothing; a state file of another search.
    """
    start = time.monotonic()
    config = config or SearchConfig()
    selection = select(params, rules)
    groups = grouped(selection.taken)
    total_size = {n: int(np.size(leaf)) for n, leaf in tree.named_leaves(params).items()}
    # Largest first, by all the weights a group holds.
    groups.sort(key=lambda g: -sum(total_size[n] for n in g[1]))
    settings = [group_setting(g, names, selection.taken) or config for g, names in groups]
    for _, names in groups:
        host_weights(params, names)  # NaN anywhere is reported before hours of search

    evaluator = Evaluator(score, batches)
    fingerprint = {
        "params": digest(params),
        "batches": digest(list(batches)),
        "key": digest(key),
        "config": _text_digest(repr([(g, n, asdict(s)) for (g, n), s in zip(groups, settings, strict=True)])),
    }
    with (SharedJournal if evaluator.shared else Journal)(state_path, fingerprint) as journal:
        network = _Network(evaluator, journal, params)
        baseline = network.measure((), None, [None])[0]
        metric, rank_by = _choose_metric(baseline, metric, rank_by)
        layers: list[LayerReport] = []
        final: Mapping[str, float] = baseline
        for i, ((group, names), setting) in enumerate(zip(groups, settings, strict=True)):
            told = _Told(progress, i, len(groups), group if group is not None else names[0], metric)
            search = LeafSearch(network.measure, names, network.params, setting, key, metric, rank_by)
            layer = _report(search, names, setting, baseline, told.step)
            if layer.accepted:
                network.accept({n: Bins(np.array(layer.result.edges, search.weights.values.dtype), group) for n in names})
                final = layer.result.metrics
            layers.append(layer)
            told.end(layer.reason)
    seconds = time.monotonic() - start
    counts = network.n_scores, network.n_resumed
    return network.stats, SearchInfo(metric, rank_by, baseline, final, tuple(layers), selection.left, *counts, seconds)


class _Network:
    """The network with the leaves accepted so far in compressed form, and what was measured of it.

    Attributes:
      stats: bins of the accepted leaves.
      params: parameters, those leaves decoded.
      n_scores, n_resumed: see :class:`bqjax.methods.bins.config.SearchInfo`.
    """

    def __init__(self, evaluator: Evaluator, journal: Journal, params: Any):
        self._evaluator, self._journal, self.params = evaluator, journal, params
        self.stats: dict[str, Bins] = {}
        self.n_scores = self.n_resumed = 0

    def measure(self, names: Sequence[str], perturbation: Any, candidates: list[Any]) -> list[dict[str, float]]:
        """Metrics of each candidate; of the network as it is where there is no perturbation."""
        answered = self._journal.answered
        state = [(n, b.edges.tolist()) for n, b in self.stats.items()]
        if perturbation is None:
            described = _text_digest(repr(("none", state)))
            results = [self._journal.measure(described, lambda: self._evaluator.baseline(self.params))]
        else:
            described = _text_digest(repr((state, list(names), perturbation, [digest(c) for c in candidates])))
            results = self._journal.measure(described, lambda: self._evaluator.scores(self.params, names, perturbation, candidates))
        self.n_scores += len(candidates)
        self.n_resumed += len(candidates) * (self._journal.answered - answered)
        return results

    def accept(self, bins: Mapping[str, Bins]) -> None:
        self.stats.update(bins)
        self.params = decode(bin_and_quant(self.params, bins))


class _Told(NamedTuple):
    """What the caller is told of one leaf or group."""

    progress: Progress | None
    number: int
    total: int
    label: str
    metric: str

    def step(self, step: Step) -> None:
        if self.progress:
            name, value = self.metric.removeprefix("-"), abs(signed(step.metrics, self.metric))
            self.progress(self.number, self.total, f"{self.label}: {step.n_bins} bins, {name} {value:.4f}")

    def end(self, reason: str) -> None:
        if self.progress:
            self.progress(self.number + 1, self.total, f"{self.label}: {reason}")


def _report(
    search: LeafSearch, names: Sequence[str], setting: SearchConfig, baseline: Mapping[str, float], step: Callable[[Step], None]
) -> LayerReport:
    """Searches a leaf or group, and says whether its compression costs little enough to be accepted."""
    paths, result, reason = search.run(step)
    drop, rank_drop = search.drop(result.metrics), search.drop(result.metrics, search.rank)
    total = float(signed(baseline, search.metric) - signed(result.metrics, search.metric))
    accepted = True
    for limit, lost, against in ((setting.max_drop, drop, "max_drop"), (setting.max_total_drop, total, "max_total_drop")):
        # Means of float sums differ in their last digits; a drop of exactly the limit is within it.
        if limit is not None and not lost <= limit + 1e-9:
            accepted, reason = False, f"drop {lost:.4f} exceeds {against} {limit:g}"
            break
    size, steps = search.weights.size, tuple(map(tuple, paths))
    return LayerReport(tuple(names), size, accepted, reason, drop, rank_drop, search.magnitude, result, steps)
