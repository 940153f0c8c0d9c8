"""Makes a quantized ``.tflite`` model smaller, and measures what came out from the file that was written.

Half of the examples are for the search, the other half for the report. Layers are measured on the network's JAX twin, LiteRT says
what the network makes of new codes, and no labels are used: what may not be lost is agreement with the original model, since
accuracy cannot drop by more than the predictions that change, and on a few hundred examples is luckier on those that were
searched on than on others. Every reported figure is LiteRT's, on the model that the file restores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.codec.plain import zstd_bytes
from bqjax.core.classification import batches
from bqjax.core.journal import digest
from bqjax.core.kept import kept_or_measured
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.tflite.codes.layer_stats import Measured
from bqjax.tflite.codes.search import QuantizedConfig, QuantizedInfo, QuantizedNetwork, measure_layers, search_codes
from bqjax.tflite.container import exact, load_model, save_model
from bqjax.tflite.examples import Examples, ExamplesOf
from bqjax.tflite.format.model import Model
from bqjax.tflite.network import Scorer, halves, interpreted_network, predictions, twin_network, unmeasured
from bqjax.tflite.twin.graph import unsupported

__all__ = ["KMeansCodes", "Lossless", "TFLiteConfig", "TFLiteMethod", "TFLiteRow", "TFLiteRun", "beside", "prepare", "run"]


@dataclass(frozen=True)
class KMeansCodes:
    """The baseline of the paper's Table II: ``k`` values a layer by k-means on the codes."""

    k: int = 8


@dataclass(frozen=True)
class Lossless:
    """Weights entropy-coded, nothing given up."""


TFLiteMethod = QuantizedConfig | KMeansCodes | Lossless


def beside(method: QuantizedConfig, max_drop: float | None = None, *, parts: bool = True) -> dict[str, TFLiteMethod]:
    """The rows that stand beside a method, by label.

    Args:
      method: that is kept.
      max_drop: of a row with another limit, for all layers and for each; None leaves it out.
      parts: whether there is a row without each part of the method.

    Returns:
      These, then the baselines: k-means with 8 values a layer, as in the paper's Table II, and lossless storage.
    """
    rows: dict[str, TFLiteMethod] = {}
    if max_drop is not None:
        layer_drop = None if method.layer_drop is None else max_drop
        rows[f"B&Q, entropy-constrained, {100 * max_drop:g} %"] = replace(method, max_drop=max_drop, layer_drop=layer_drop)
    if parts:
        rows["no error compensation"] = replace(method, compensate=False)
        rows["no bias correction"] = replace(method, correct_bias=False)
    return {**rows, "k-means, 8 values": KMeansCodes(8), "lossless": Lossless()}


@dataclass(frozen=True, kw_only=True)
class TFLiteConfig:
    """An experiment of ``bqjax compress --config`` on a ``.tflite`` model.

    Attributes:
      model: the file, within the folder of ``--data``.
      examples: see :func:`bqjax.tflite.examples.examples_of`.
      method: makes the file that is kept.
      beside: other settings by label, whose rows stand beside it; their files are not kept.
      data: what the folder of ``--data`` must hold; None where ``model`` and ``examples`` name it.
      seed: of the split into halves and of every other draw.
      batch_size: of the twin.
      positions, draws: see :func:`bqjax.tflite.codes.search.measure_layers`.
      scored_by: who predicts during the search; on CPU LiteRT is several times as fast as the twin, and it is what is reported.
      twin: False does without, as where the twin lacks an operator: layers are not measured.
    """

    model: str
    examples: ExamplesOf
    method: QuantizedConfig = field(default_factory=QuantizedConfig)
    beside: Mapping[str, TFLiteMethod] = field(default_factory=dict)
    data: str | None = None
    seed: int = 0
    batch_size: int = 50
    positions: int = 1024
    draws: int = 1
    scored_by: Scorer = "litert"
    twin: bool = True

    @property
    def needs(self) -> str:
        """What the folder of ``--data`` must hold."""
        return self.data or " and ".join([self.model, *([self.examples] if isinstance(self.examples, str) else [])])


class TFLiteRow(NamedTuple):
    """One line of the table. Right answers are counts, of LiteRT with its default kernels.

    Attributes:
      method: label.
      search, test: right answers in the half that was searched on and in the other.
      difference, standard_error: of the accuracy on the test half against the original model, paired, as shares.
      agreement: share of test examples on which both predict the same.
      file_bytes: of the container.
      ratio: bytes of the ``.tflite`` over ``file_bytes``.
      bits_per_weight: ``8 * file_bytes`` over all weights.
      seconds: that compressing took.
    """

    method: str
    search: int
    test: int
    difference: float
    standard_error: float
    agreement: float
    file_bytes: int
    ratio: float
    bits_per_weight: float
    seconds: float


class TFLiteRun(NamedTuple):
    """A model with its examples and what all rows share.

    Attributes:
      model, examples: what is compressed, and all examples.
      search, test: rows of the two halves.
      before: predictions of the original model.
      measured: gives what calibration says of the layers; taken once.
      missing: why there is no twin; None where there is.
      network, batches: the network and the search half, labelled by what the original model says.
      zstd_bytes: of the original file.
      n_weights: codes of all weights.
    """

    model: Model
    examples: Examples
    search: np.ndarray
    test: np.ndarray
    before: np.ndarray
    measured: Callable[[], dict[str, Any]]
    missing: str | None
    network: QuantizedNetwork
    batches: list[Any]
    zstd_bytes: int
    n_weights: int


def prepare(
    model: Model,
    examples: Examples,
    *,
    seed: int = 0,
    batch_size: int = 50,
    positions: int = 1024,
    draws: int = 1,
    scored_by: Scorer = "litert",
    twin: bool = True,
    state_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> TFLiteRun:
    """Splits the examples, runs the original model, and builds its twin.

    Arguments are those of :class:`TFLiteConfig`; ``state_path`` keeps what was measured of the layers. Where the twin lacks an
    operator the network is that of :func:`bqjax.tflite.network.interpreted_network`.

    Raises:
      ValueError: fewer than two examples, examples of another shape or type than the model's input, or a model that LiteRT refuses.
    """
    search, test = halves(len(examples.labels), seed)
    before = predictions(model.content, examples.inputs)  # first, so that LiteRT refuses what it cannot run
    missing = unsupported(model.graph) if twin else "the twin is not asked for"
    network = interpreted_network(model) if missing else twin_network(model, scored_by)
    cut = batches(examples.inputs[search], before[search].astype(np.int32), min(batch_size, len(search)))
    key = jax.random.key(seed)
    found: dict[str, Any] = {}

    def measured() -> dict[str, Any]:
        if not found and missing:
            found.update(unmeasured(network))
        if not found:
            settings = {"positions": str(positions), "draws": str(draws), "batch_size": str(batch_size)}
            fingerprint = {"params": digest(network.params), "batches": digest(cut), "key": digest(key), **settings}
            found.update(
                kept_or_measured(
                    state_path,
                    fingerprint,
                    Measured,
                    lambda: measure_layers(network, cut, key=key, positions=positions, draws=draws, progress=progress),
                )
            )
        return found

    n_weights = sum(layer["codes"].size for layer in model.params.values())
    return TFLiteRun(model, examples, search, test, before, measured, missing, network, cut, zstd_bytes(model.content), n_weights)


def run(
    on: TFLiteRun,
    label: str,
    method: TFLiteMethod,
    path: str | os.PathLike[str],
    *,
    coder: str = "auto",
    force: bool = False,
    state_path: str | None = None,
    progress: Progress | None = None,
) -> tuple[TFLiteRow, QuantizedInfo | None]:
    """Compresses, writes the file, restores the model from it and runs that.

    Raises:
      ValueError: see the method, and :func:`bqjax.tflite.container.save_model`.
    """
    start = time.monotonic()
    info = None
    tree: dict[str, dict[str, Any]] = {name: dict(layer) for name, layer in on.model.params.items()}
    if isinstance(method, QuantizedConfig):
        params, info = search_codes(on.network, on.batches, on.measured(), method, state_path=state_path, progress=progress)
        for report in info.layers:
            if report.accepted:
                new = params[report.name]
                tree[report.name] = {**new, "codes": exact(np.asarray(new["codes"]))}
    elif isinstance(method, KMeansCodes):
        codes = {name: layer["codes"] for name, layer in on.model.params.items()}
        for name, leaf in kmeans_share(codes, method.k, [Rule[int]("*")]).items():
            tree[name]["codes"] = leaf
    seconds = time.monotonic() - start
    save_model(
        path,
        on.model,
        tree,
        classes=info.classes if info else None,
        searched={layer.name: (layer.reason, layer.drop) for layer in info.layers} if info else None,
        coder=coder,
        force=force,
        metadata={"method": label},
    )
    after = predictions(load_model(path), on.examples.inputs)
    labels, size = on.examples.labels, Path(path).stat().st_size
    right, was = (after == labels).astype(np.float64), (on.before == labels).astype(np.float64)
    changed = (right - was)[on.test]
    row = TFLiteRow(
        label,
        int(right[on.search].sum()),
        int(right[on.test].sum()),
        float(changed.mean()),
        float(changed.std() / np.sqrt(len(changed))),
        float((after == on.before)[on.test].mean()),
        size,
        len(on.model.content) / size,
        8 * size / on.n_weights,
        seconds,
    )
    return row, info
