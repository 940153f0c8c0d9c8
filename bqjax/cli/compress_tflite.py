"""What ``bqjax compress`` does with a quantized model; :mod:`bqjax.cli.compress_arguments` parses its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from bqjax.cli.files import inspect, refuse_same
from bqjax.codec.plain import zstd_bytes
from bqjax.experiment import Experiment
from bqjax.experiment.storage import write_checked
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.report.console import say
from bqjax.tflite import CODES, IntegerBinAndQuant, Model, QuantizedConfig, TFLiteStorage, read, tflite_task
from bqjax.tflite.container import load_model, save_lossless

__all__ = ["binned", "compress_tflite", "tflite_experiment"]


def tflite_experiment(source: Path, examples: Path, *, max_drop: float) -> Experiment:
    """Compresses a ``.tflite`` model, changing at most ``max_drop`` % of the predictions on half of the examples."""
    search = QuantizedConfig(max_drop=max_drop / 100, layer_drop=max(max_drop / 100, 0.01))
    return Experiment(
        task=lambda data_dir, progress: tflite_task(source, examples),
        methods=(IntegerBinAndQuant(search=search),),
    )


def binned(model: Model, method: str, bins: int) -> Any:
    """The layers of a model that can change, with so many values each, by ``"gaussian-bins"`` or ``"kmeans"``."""
    found: Any = model.changeable
    return kmeans_share(found, bins, CODES) if method == "kmeans" else bin_and_quant(found, gaussian_bins(found, bins, CODES))


def compress_tflite(
    source: Path, out: Path, *, method: str, bins: int, coder: str = "auto", force: bool = False, console: Console
) -> None:
    """Compresses a ``.tflite`` without data.

    Args:
      source: the model; lossless, any ``.tflite`` file.
      out: the file.
      method: ``"lossless"``, which restores the model byte for byte, ``"gaussian-bins"`` or ``"kmeans"``.
      bins: values a layer, of the latter two.
      coder: see :func:`bqjax.codec.save`.
      force: overwrite an existing file.
      console: shows the file.
    """
    if out.exists() and not force:
        raise ValueError(f"{out} exists: pass --force to overwrite it")
    refuse_same(source, out)
    metadata = {"method": method}
    content = source.read_bytes()
    if method == "lossless":
        try:
            save_lossless(out, content, coder=coder, force=force, metadata=metadata)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        if load_model(out) != content:
            raise RuntimeError(f"{out} does not restore {source}")
    else:
        model = read(source)
        tree = {**model.params, **binned(model, method, bins)}
        write_checked(TFLiteStorage(model), out, tree, coder=coder, force=force, metadata=metadata)
    inspect(out, console=console)
    whole, size, plain = len(content), out.stat().st_size, zstd_bytes(content)
    say(
        console,
        f"{source.name} {whole:,} bytes; zstd -19 {plain:,} ({whole / plain:.2f}x); {out.name} {size:,} ({whole / size:.2f}x)",
    )
    if method != "lossless":
        say(console, "accuracy was not measured")
