"""What ``bqjax compress`` does with a quantized model and data; :mod:`bqjax.cli.arguments` parses its arguments."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bqjax.cli.files import inspect, refuse_same
from bqjax.codec.plain import zstd_bytes
from bqjax.core.files import atomic_write
from bqjax.core.rules import Rule
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.report.console import progress_bar, say
from bqjax.report.tables import markdown, rich_table
from bqjax.report.tflite_tables import layers_table, tflite_table
from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.container import load_model, save_model
from bqjax.tflite.examples import Examples, examples_of, read_examples
from bqjax.tflite.experiment import Lossless, TFLiteConfig, TFLiteMethod, prepare, run
from bqjax.tflite.format.model import Model, read
from bqjax.tflite.format.model import read as read_tflite

__all__ = ["compress_tflite", "compress_tflite_config", "compress_tflite_with_data"]


def compress_tflite_config(
    config: TFLiteConfig,
    data: Path | None,
    out: Path,
    *,
    command: str,
    table: Path | None = None,
    force: bool = False,
    console: Console,
) -> None:
    """Runs an experiment on a ``.tflite`` model."""
    if data is None:
        raise ValueError(f"--data is missing: it must name a folder with {config.needs}")
    model = read(data / config.model)
    examples = examples_of(config.examples, data, model.graph.tensors[model.graph.inputs[0]])
    _run(model, Path(config.model).name, examples, config, out, command=command, table=table, force=force, console=console)


def compress_tflite_with_data(
    source: Path,
    data: Path,
    out: Path,
    *,
    max_drop: float,
    command: str,
    table: Path | None = None,
    force: bool = False,
    console: Console,
) -> None:
    """Compresses a ``.tflite`` model, changing at most ``max_drop`` % of the predictions on half of the examples."""
    model = read(source)
    examples = read_examples(data, model.graph.tensors[model.graph.inputs[0]])
    config = TFLiteConfig(
        model=source.name,
        examples=lambda data_dir, tensor: examples,
        method=QuantizedConfig(max_drop=max_drop / 100, layer_drop=max(max_drop / 100, 0.01)),
        beside={"lossless": Lossless()},
        data=str(data),
    )
    _run(model, source.name, examples, config, out, command=command, table=table, force=force, console=console)


def _run(
    model: Model,
    name: str,
    examples: Examples,
    config: TFLiteConfig,
    out: Path,
    *,
    command: str,
    table: Path | None,
    force: bool,
    console: Console,
) -> None:
    """Searches, writes the file, prints and writes the table. Interrupted, it goes on from what it kept beside ``out``."""
    for path in (out, table):
        if path is not None and path.exists() and not force:
            raise ValueError(f"{path} exists: pass --force to overwrite it")
    out.parent.mkdir(parents=True, exist_ok=True)
    measured = out.with_name(f"{out.name}.measured.safetensors")
    states = [measured]
    with progress_bar(console, "measuring the layers") as progress:
        on = prepare(
            model,
            examples,
            seed=config.seed,
            batch_size=config.batch_size,
            positions=config.positions,
            draws=config.draws,
            scored_by=config.scored_by,
            twin=config.twin,
            state_path=measured,
            progress=progress,
        )
        on.measured()
    if on.missing:
        say(
            console,
            f"{on.missing}: layers are not measured, and their codes are chosen without error compensation and bias correction",
        )
    methods: dict[str, TFLiteMethod] = {"B&Q, entropy-constrained": config.method, **config.beside}
    with tempfile.TemporaryDirectory(prefix=".bqjax-", dir=out.parent) as scratch:
        rows, kept, info = [], Path(scratch) / "kept.bq.safetensors", None
        for i, (label, method) in enumerate(methods.items()):
            states.append(out.with_name(f"{out.name}.{i}.jsonl"))
            path = kept if i == 0 else Path(scratch) / "beside.bq.safetensors"
            with progress_bar(console, label) as progress:
                row, found = run(on, label, method, path, force=i > 0, state_path=str(states[-1]), progress=progress)
            rows.append(row)
            info = found if i == 0 else info
        kept.replace(out)
    results = tflite_table(name, on, rows)
    for shown in ([layers_table(info)] if info else []) + [results]:
        console.print(rich_table(shown))
    if table is not None:
        with atomic_write(table, force=force) as file:
            file.write(f"`{command}`\n\n{markdown(results)}".encode())
    for state in states:
        state.unlink(missing_ok=True)
    say(console, f"wrote {out}")


def compress_tflite(
    source: Path, out: Path, *, lossless: bool, method: str, bins: int, coder: str = "auto", force: bool = False, console: Console
) -> None:
    """Compresses a quantized ``.tflite`` without data, and checks that the file restores the model byte for byte."""
    if out.exists() and not force:
        raise ValueError(f"{out} exists: pass --force to overwrite it")
    refuse_same(source, out)
    model = read_tflite(source)
    tree: dict[str, dict[str, Any]] = {name: dict(layer) for name, layer in model.params.items()}
    if not lossless:
        codes = {name: layer["codes"] for name, layer in model.params.items()}
        rules = [Rule[Any]("*")]
        binned = (
            bin_and_quant(codes, gaussian_bins(codes, bins, rules))
            if method == "gaussian-bins"
            else kmeans_share(codes, bins, rules)
        )
        for name, leaf in binned.items():
            tree[name]["codes"] = leaf
    label = "lossless" if lossless else method
    save_model(out, model, tree, coder=coder, force=force, metadata={"method": label})
    restored = load_model(out)
    if lossless and restored != model.content:
        raise RuntimeError(f"{out} does not restore {source}")
    inspect(out, console=console)
    whole, size, plain = len(model.content), out.stat().st_size, zstd_bytes(model.content)
    say(
        console,
        f"{source.name} {whole:,} bytes; zstd -19 {plain:,} ({whole / plain:.2f}x); {out.name} {size:,} ({whole / size:.2f}x)",
    )
    if not lossless:
        say(console, "accuracy was not measured")
