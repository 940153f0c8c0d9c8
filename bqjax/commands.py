"""What the commands of ``bqjax`` do; :mod:`bqjax.cli` parses their arguments."""

from __future__ import annotations

import hashlib
import runpy
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from bqjax import codec, experiment
from bqjax.adapters.tflite.model import read as read_tflite
from bqjax.adapters.weights import stream_weights
from bqjax.bin_and_quant import bin_and_quant, gaussian_bins
from bqjax.codec.structure import DTYPES
from bqjax.experiment import ExperimentConfig
from bqjax.files import atomic_write
from bqjax.leaves import decode
from bqjax.methods import Method
from bqjax.progress import Progress
from bqjax.related.weight_sharing import kmeans_share
from bqjax.report.html import search_report
from bqjax.report.tables import file_table, markdown, results_table, rich_table, search_table
from bqjax.tflite_container import described, load_model, save_model
from bqjax.tree import Rule

__all__ = [
    "compress_experiment",
    "compress_tflite",
    "decompress",
    "inspect",
    "load_config",
    "progress_bar",
    "refuse_same",
    "say",
]


def say(console: Console, text: str) -> None:
    """Prints a line as it is: brackets and colons in names are not rich's markup."""
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Progress]:
    """A live bar on a terminal; elsewhere a line every few seconds, so that a log shows that work goes on."""
    if not console.is_terminal:
        start = last = time.monotonic()

        def line(done: int, total: int, message: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 5 or done == total:
                last = now
                say(console, f"{what} {done}/{total} {message} ({now - start:.0f} s)")

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, message="")
        yield lambda done, total, message: bar.update(task, completed=done, total=total, message=message)


def load_config(path: Path, *kinds: type) -> Any:
    """The ``config`` of one of some kinds that a Python file defines. The file is run: use files you trust."""
    if not path.is_file():
        raise ValueError(f"no config file {path}")
    config = runpy.run_path(str(path)).get("config")
    if not isinstance(config, kinds):
        wanted = " or ".join(f"`config = {kind.__name__}(...)`" for kind in kinds)
        raise ValueError(f"{path} must define {wanted}, found {type(config).__name__}")
    return config


def compress_experiment(
    config: ExperimentConfig,
    data: Path | None,
    out: Path,
    *,
    command: str,
    report: Path | None = None,
    table: Path | None = None,
    force: bool = False,
    console: Console,
) -> None:
    """Runs an experiment: searches, writes the file, scores what it decodes to, prints and writes the tables.

    Interrupted, it keeps its measurements beside ``out`` and goes on from them when run again.
    """
    for path in (out, report, table):
        if path is not None and path.exists() and not force:
            raise ValueError(f"{path} exists: pass --force to overwrite it")
    if config.data is not None and data is None:
        raise ValueError(f"--data is missing: it must name a folder with {config.data}")
    with progress_bar(console, "preparing") as progress:
        task = config.task(data, progress)
        before = experiment.reference(task)
    key = jax.random.key(config.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    states: set[Path] = set()

    def run(method: Method, path: Path, overwrite: bool) -> experiment.Outcome:
        # Methods with one search between them share its measurements.
        search = hashlib.sha256(experiment.search_name(method).encode()).hexdigest()
        state = out.with_name(f"{out.name}.{search[:8]}.jsonl")
        states.add(state)
        with progress_bar(console, method.label) as progress:
            return experiment.run(
                task,
                method,
                path,
                before,
                key=key,
                coder=config.coder,
                force=overwrite,
                state_path=str(state),
                progress=progress,
                metadata={"task": task.name, "method": method.label},
            )

    with tempfile.TemporaryDirectory(prefix=".bqjax-", dir=out.parent) as scratch:
        kept = Path(scratch) / "kept.bq.safetensors"
        outcome = run(config.method, kept, False)
        rows = [outcome.row, *(run(m, Path(scratch) / "beside.bq.safetensors", True).row for m in config.beside)]
        # The file takes its name last: where it stood there before, the command could not be run again after an interruption.
        kept.replace(out)

    names = task.test_name, task.calibration_name
    results = results_table(task.name, task.metric, before, rows, names)
    files = file_table(codec.inspect(out), str(out.name))
    for shown in ([search_table(outcome.info)] if outcome.info else []) + [files, results]:
        console.print(rich_table(shown))
    if table is not None:
        with atomic_write(table, force=force) as file:
            file.write(f"`{command}`\n\n{markdown(results)}".encode())
    if report is not None:
        html = search_report(task, before, outcome, rows, files, command, names)
        with atomic_write(report, force=force) as file:
            file.write(html.encode())
    for state in states:
        state.unlink(missing_ok=True)
    say(console, f"wrote {out}" + (f" and {report}" if report else ""))


def refuse_same(source: Path, out: Path) -> None:
    """Raises ``ValueError`` where a command would write over the file that it reads."""
    if source.exists() and out.exists() and source.samefile(out):
        raise ValueError(f"{out} is the file that is read: name another one to write")


def compress_tflite(
    source: Path, out: Path, *, lossless: bool, method: str, bins: int, coder: str = "auto", force: bool = False, console: Console
) -> None:
    """Compresses a quantised ``.tflite`` without data, and checks that the file restores the model byte for byte."""
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
    whole, size, plain = len(model.content), out.stat().st_size, experiment.zstd_bytes(model.content)
    say(
        console,
        f"{source.name} {whole:,} bytes; zstd -19 {plain:,} ({whole / plain:.2f}x); {out.name} {size:,} ({whole / size:.2f}x)",
    )
    if not lossless:
        say(console, "accuracy was not measured")


def decompress(source: Path, out: Path, *, force: bool = False, console: Console) -> None:
    """Decodes a file to plain safetensors weights, or to the ``.tflite`` model that it holds."""
    refuse_same(source, out)
    info = codec.inspect(source)
    if info.metadata.get("kind") == "tflite":
        content = load_model(source)
        with atomic_write(out, force=force) as file:
            file.write(content)
        say(console, f"wrote {out}: a .tflite model, {len(content):,} bytes")
        return
    shapes = {leaf.name: (leaf.shape, DTYPES[leaf.dtype]) for leaf in info.leaves}
    stream_weights(out, shapes, ((name, decode(leaf)) for name, leaf in codec.read_leaves(source)), force=force)
    say(console, f"wrote {out}: {len(shapes)} tensors, {out.stat().st_size:,} bytes")


def inspect(source: Path, *, console: Console) -> None:
    """Shows what a file holds, leaf by leaf, without decoding it."""
    info = codec.inspect(source)
    console.print(rich_table(file_table(info, source.name)))
    for name, value in described(info.metadata).items():
        say(console, f"{name}: {value}")
