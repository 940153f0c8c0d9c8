"""Bin & Quant for integer models: new codes for every layer at one Lagrangian weight of storage, found on calibration data.

1. Once: moments of every layer's inputs, and the importance of its outputs (no labels).
2. At a given ``lmbda``, each layer gets a grid of its own and codes with error compensation (:mod:`bqjax.tflite.codes.grid`); its
   bias takes up what the mean of its outputs has moved.
3. Bisection and a scan around its end (:mod:`bqjax.sensitivity.limit`) find the highest lmbda at which the network loses no more
   than it may.
4. Layers are gone through in descending order of size, as in the paper: one that costs too much by itself stays as it was.

Reference: Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-B; what is ours is said in docs/tflite.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.journal import Journal, digest
from bqjax.core.progress import Progress
from bqjax.core.scoring import score_batches
from bqjax.core.task import Score, signed
from bqjax.methods.rate_distortion.leaf import LeafStats, mean_curvature
from bqjax.sensitivity.importance import output_importance
from bqjax.sensitivity.limit import highest_within
from bqjax.tflite.codes.grid import QuantizedLayer, quantize_layer, quantize_layer_by_output
from bqjax.tflite.codes.layer_stats import Layer, Measured, Moments, layer_layout, layer_stats

__all__ = ["QuantizedConfig", "QuantizedInfo", "QuantizedNetwork", "QuantizedReport", "Target", "measure_layers", "search_codes"]


class Target(Protocol):
    """A file format that says itself what codes of a layer cost. A frozen dataclass: its ``repr`` tells searches apart."""

    def prepared(
        self, codes: np.ndarray, zero_point: int, stats: LeafStats, settings: Mapping[str, Any]
    ) -> Callable[[float], QuantizedLayer | None]:
        """New codes of one layer by lmbda; arguments as of :func:`bqjax.tflite.codes.grid.quantize_layer`."""
        ...


@dataclass(frozen=True, kw_only=True)
class QuantizedConfig:
    """How codes are searched.

    Attributes:
      lmbda: of a bit; None finds the highest at which ``max_drop`` holds.
      max_drop: of the metric on calibration data, all layers together (a share: 0.01 is a point of accuracy).
      layer_drop: a layer whose new codes cost more, against the network with the layers accepted before it, is left as
        it was (the paper: 0.01); None tries no layer by itself.
      compensate: later weights of a layer make good the errors of earlier ones.
      correct_bias: biases take up the mean of what the outputs move.
      by_output: outputs of a convolution or dense layer that matter more get a finer grid of their own where that pays, see
        :func:`bqjax.tflite.codes.grid.quantize_layer_by_output`.
      steps: of the bisection, each compresses and scores the network once.
      scan: lmbdas tried after it, from the one that it accepted to twice the lowest that it refused, see
        :func:`bqjax.sensitivity.limit.highest_within`; 0 takes what the bisection found.
      passes, sweeps: over a layer and of coordinate descent after each, see :func:`bqjax.tflite.codes.grid.quantize_layer`.
      step_scale: likewise.
      damping: of the inputs' second moment, a share of its mean diagonal.
      target: the file format that codes are for, where it is another than :mod:`bqjax.tflite.container`, which codes them at their
        entropy.
    """

    lmbda: float | None = None
    max_drop: float = 0.01
    layer_drop: float | None = 0.01
    compensate: bool = True
    correct_bias: bool = True
    by_output: bool = False
    steps: int = 7
    scan: int = 8
    passes: int = 2
    sweeps: int = 4
    step_scale: float = 1.0
    damping: float = 0.01
    target: Target | None = None

    def __post_init__(self) -> None:
        if self.lmbda is not None and not (self.lmbda >= 0 and math.isfinite(self.lmbda)):
            raise ValueError(f"lmbda must be finite and not negative, got {self.lmbda}")
        for what in ("steps", "passes"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} must be at least 1, got {getattr(self, what)}")
        for what in ("scan", "sweeps"):
            if getattr(self, what) < 0:
                raise ValueError(f"{what} must not be negative, got {getattr(self, what)}")
        for what in ("max_drop", "layer_drop"):
            value = getattr(self, what)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{what} must be finite and not negative, got {value}")
        for what in ("step_scale", "damping"):
            if not (getattr(self, what) > 0 and math.isfinite(getattr(self, what))):
                raise ValueError(f"{what} must be positive and finite, got {getattr(self, what)}")


class QuantizedNetwork(NamedTuple):
    """An integer network as functions.

    Attributes:
      params: ``{layer: {"codes", "zero_point", "bias", ...}}``; ``bias`` may be absent.
      layers: the operator of each layer, by name.
      inputs: ``inputs(params, x) -> {layer: input}``, counted from the input's zero point.
      real: ``real(params, batch) -> [n, ...]`` the outputs in real numbers, differentiable in float codes; zero for padding.
      score: of integer params, see :data:`bqjax.core.task.Score`.
      traceable: whether the score can run under ``jit``.
      tied: further layers that have the codes of one of ``layers``, by its name: they change with it.
      fixed_biases: layers whose bias stays.
    """

    params: dict[str, dict[str, Any]]
    layers: Mapping[str, Layer]
    inputs: Callable[[Any, Any], Mapping[str, jax.Array]]
    real: Callable[[Any, Any], jax.Array]
    score: Score
    traceable: bool = True
    tied: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    fixed_biases: frozenset[str] = frozenset()


@dataclass(frozen=True)
class QuantizedReport:
    """What was done to a layer.

    Attributes:
      name, size: its weight and how many codes that has.
      accepted: False where it was left as it was, for ``reason``.
      values: how many different codes it has now.
      bits: per code, at their entropy.
      step: of the grid, the coarsest where there are several, in steps of the old codes.
      drop: of the metric by this layer, after those before it; None where it was not tried by itself.
    """

    name: str
    size: int
    accepted: bool
    reason: str
    values: int
    bits: float
    step: float
    drop: float | None


@dataclass(frozen=True)
class QuantizedInfo:
    """Report of a search; metrics are on calibration data. ``classes`` has ``[outputs]`` of layers with several grids."""

    lmbda: float
    baseline: Mapping[str, float]
    final: Mapping[str, float]
    layers: tuple[QuantizedReport, ...]
    seconds: float
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)


def measure_layers(
    network: QuantizedNetwork,
    batches: Sequence[Any],
    *,
    key: jax.Array,
    positions: int = 2048,
    draws: int = 2,
    examples: int = 10,
    progress: Progress | None = None,
) -> dict[str, Measured]:
    """What a search needs to know of every layer, from calibration data; no labels are used.

    Args:
      network: the network.
      batches: ``{"inputs", "mask", ...}``.
      key: a ``jax.random`` key.
      positions: places of a layer's input that are looked at in each batch.
      draws: random signs for the importance.
      examples: of a batch that share one draw of signs. An output's importance is known to ``sqrt(2 / draws of signs)`` of itself.
      progress: called after each batch.
    """
    if not len(batches):
        raise ValueError("no batches to measure the layers on: the calibration data holds no examples")
    shapes = {name: network.params[name]["codes"].shape for name in network.layers}
    keys = jax.random.split(key, len(shapes) + 1)
    moments = {name: Moments(network.layers[name], shapes[name], positions, k) for name, k in zip(shapes, keys[1:], strict=True)}
    inputs = jax.jit(network.inputs)
    for i, batch in enumerate(batches):
        for name, x in inputs(network.params, batch["inputs"]).items():
            moments[name].add(x)
        if progress:
            progress(i + 1, len(batches), "inputs of the layers")
    # Gradients need real numbers.
    real = {layer: {**leaves, "codes": jnp.asarray(leaves["codes"], jnp.float32)} for layer, leaves in network.params.items()}
    names = [f"{name}/codes" for name in shapes]
    importance = output_importance(network.real, real, batches, key=keys[0], draws=draws, names=names, examples=examples)
    layouts = {name: layer_layout(network.layers[name].kind, shape) for name, shape in shapes.items()}
    return {name: Measured(*moments[name].result(), layouts[name].to_rows(importance[f"{name}/codes"])) for name in shapes}


class _Search:
    def __init__(
        self,
        network: QuantizedNetwork,
        batches: Sequence[Any],
        measured: Mapping[str, Measured],
        config: QuantizedConfig,
        metric: str,
        journal: Journal,
    ):
        self.network, self.config, self.metric, self._journal = network, config, metric, journal
        self._batches, self._measured = batches, measured
        self._stats = {name: layer_stats(m, centred=self._moves_bias(name), damping=config.damping) for name, m in measured.items()}
        self._score = jax.jit(network.score) if network.traceable else network.score
        codes = {name: np.asarray(network.params[name]["codes"]).astype(np.int64) for name in network.layers}
        self._layouts = {name: layer_layout(layer.kind, codes[name].shape) for name, layer in network.layers.items()}
        self.rows = {name: layout.to_rows(codes[name]) for name, layout in self._layouts.items()}
        self._prepared: dict[str, Callable[[float], QuantizedLayer | None]] = {}

    def score(self, params: Callable[[], Any], what: str) -> dict[str, float]:
        """Metrics of ``params()``, which is not called where the journal knows them: new codes take longer than their score."""

        return self._journal.measure(what, lambda: score_batches(self._score, params(), self._batches))

    def zero_point(self, name: str) -> int:
        return int(np.asarray(self.network.params[name]["zero_point"]).reshape(-1)[0])

    def layer(self, name: str, lmbda: float) -> QuantizedLayer | None:
        config = self.config
        names = ("compensate", "passes", "sweeps", "step_scale")
        settings: dict[str, Any] = {name: getattr(config, name) for name in names}
        if config.target is not None:
            if name not in self._prepared:
                layer = self.rows[name], self.zero_point(name), self._stats[name]
                self._prepared[name] = config.target.prepared(*layer, settings)
            return self._prepared[name](lmbda)
        # Outputs of a depthwise layer have a few weights each: too few for tables of their own.
        by_output = config.by_output and self.network.layers[name].kind != "DEPTHWISE_CONV_2D"
        return (quantize_layer_by_output if by_output else quantize_layer)(
            self.rows[name],
            self.zero_point(name),
            self._stats[name],
            lmbda,
            **settings,
        )

    def leaves(self, name: str, new: QuantizedLayer) -> dict[str, Any]:
        """A layer's leaves with new codes, and the bias that goes with them."""
        old = self.network.params[name]
        codes = self._layouts[name].to_leaf(new.codes).astype(old["codes"].dtype)
        leaves = {**old, "codes": codes}
        if self._moves_bias(name):
            moved = np.einsum(
                "grd,gd->gr", (self.rows[name] - new.codes).astype(np.float64), self._measured[name].mean.astype(np.float64)
            )
            bias = np.asarray(old["bias"]).astype(np.int64) + np.rint(moved.reshape(-1)).astype(np.int64)
            limits = np.iinfo(np.int32)
            leaves["bias"] = np.clip(bias, limits.min, limits.max).astype(np.int32)
        return leaves

    def _moves_bias(self, name: str) -> bool:
        return self.config.correct_bias and "bias" in self.network.params[name] and name not in self.network.fixed_biases

    def changed(self, name: str, new: QuantizedLayer) -> dict[str, dict[str, Any]]:
        """A layer's new leaves, and those of the layers that have its codes."""
        leaves = self.leaves(name, new)
        others = self.network.tied.get(name, ())
        return {name: leaves, **{other: {**self.network.params[other], "codes": leaves["codes"]} for other in others}}

    def unit(self) -> float:
        """The lmbda at which the grid of the middle weight would be that of the old codes."""
        sizes = np.array([rows.size for rows in self.rows.values()])
        logs = np.array([math.log(mean_curvature(self._stats[name])) for name in self.rows])
        return float(math.exp((logs * sizes).sum() / sizes.sum()) * math.log(2) / 12)

    def at(self, lmbda: float) -> dict[str, QuantizedLayer]:
        found = {name: self.layer(name, lmbda) for name in self.rows}
        return {name: layer for name, layer in found.items() if layer is not None}

    def with_layers(self, layers: Mapping[str, QuantizedLayer]) -> dict[str, dict[str, Any]]:
        changed = (self.changed(name, layer) for name, layer in layers.items())
        return {**self.network.params, **{name: leaves for layer in changed for name, leaves in layer.items()}}

    def drop(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        return float(signed(before, self.metric) - signed(after, self.metric))


def search_codes(
    network: QuantizedNetwork,
    batches: Sequence[Any],
    measured: Mapping[str, Measured],
    config: QuantizedConfig,
    *,
    metric: str = "accuracy",
    state_path: str | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, dict[str, Any]], QuantizedInfo]:
    """New codes and biases for a quantized network.

    Args:
      network: the network.
      batches: calibration data, ``{"inputs", "labels", "mask"}``.
      measured: of every layer, from :func:`measure_layers`.
      config: settings.
      metric: what ``max_drop`` and ``layer_drop`` speak of.
      state_path: a file that keeps what was measured.
      progress: called as the search goes on.

    Returns:
      Parameters of the same structure, shapes and dtypes, and a report.
    """
    start = time.monotonic()
    fingerprint = {
        "params": digest(network.params),
        "batches": digest(list(batches)),
        "measured": digest(dict(measured)),
        "config": repr(config),
        "metric": metric,
    }
    with Journal(state_path, fingerprint) as journal:
        search = _Search(network, batches, measured, config, metric, journal)
        baseline = search.score(lambda: network.params, "baseline")
        lmbda = config.lmbda
        if lmbda is None:
            lmbda = _highest_lmbda(search, baseline, progress)
        layers = search.at(lmbda)
        params, before, reports = dict(network.params), baseline, []
        order = sorted(search.rows, key=lambda name: -search.rows[name].size)
        for i, name in enumerate(order):
            new = layers.get(name)
            drop, reason = None, "accepted"
            if new is None:
                reason = "no code is worth giving up at this lmbda"
            else:
                tried = {**params, **search.changed(name, new)}
                if config.layer_drop is not None:
                    after = search.score(
                        partial(dict, tried),
                        f"{lmbda.hex()} {name} after {sorted(n for n in order[:i] if params[n] is not network.params[n])}",
                    )
                    drop = search.drop(before, after)
                    if drop > config.layer_drop + 1e-9:
                        new, reason = None, f"drop {drop:.4f} above {config.layer_drop:g}"
                    else:
                        before = after
                if new is not None:
                    params = tried
            reports.append(_report(name, search.rows[name], new, reason, drop))
            if progress:
                progress(i + 1, len(order), f"{name}: {reason}")
        final = search.score(lambda: params, f"final {lmbda.hex()} {[r.accepted for r in reports]}")
    several = {r.name: layers[r.name].classes[0] for r in reports if r.accepted and layers[r.name].classes.max()}
    return params, QuantizedInfo(lmbda, baseline, final, tuple(reports), time.monotonic() - start, several)


def _report(name: str, old: np.ndarray, new: QuantizedLayer | None, reason: str, drop: float | None) -> QuantizedReport:
    counts = np.unique(old if new is None else new.codes, return_counts=True)[1]
    bits = float(-(counts * np.log2(counts / old.size)).sum()) if new is None else new.bits
    step = 1.0 if new is None else max(new.steps)
    return QuantizedReport(name, old.size, new is not None, reason, len(counts), bits / old.size, step, drop)


def _highest_lmbda(search: _Search, baseline: Mapping[str, float], progress: Progress | None) -> float:
    """The highest lmbda that was measured to keep the limit, 0 where none did; searched on its logarithm."""
    unit, config, tried = search.unit(), search.config, 0

    def lost(exponent: float) -> float:
        nonlocal tried
        lmbda = unit * 2**exponent
        after = search.score(lambda: search.with_layers(search.at(lmbda)), f"all {lmbda.hex()}")
        drop, tried = search.drop(baseline, after), tried + 1
        if progress:
            progress(tried, config.steps + config.scan, f"grid of {2 ** (exponent / 2):.2f} steps: drop {drop:+.4f}")
        return drop

    found = highest_within(lost, config.max_drop, low=0.0, high=12.0, steps=config.steps, scan=config.scan)
    return 0.0 if found is None else unit * 2**found
