"""What ``bqjax compress --target tflm`` does; :mod:`bqjax.cli.arguments` parses its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bqjax.cli.compress import Outputs, compress_experiment
from bqjax.cli.compress_budget import parse_size
from bqjax.cli.compress_tflite import binned
from bqjax.cli.files import inspect, refuse_same
from bqjax.cli.micro_summary import micro_summary
from bqjax.core.files import atomic_write
from bqjax.experiment import Experiment
from bqjax.experiment.storage import write_checked
from bqjax.report.console import say
from bqjax.tflite import IntegerBinAndQuant, read
from bqjax.tflite.micro import Limits, c_array, micro_content
from bqjax.tflite.micro.c_source import is_c_source
from bqjax.tflite.micro.task import MicroStorage, micro_search, micro_task

__all__ = ["MicroOptions", "compress_micro", "micro_experiment"]


@dataclass(frozen=True, kw_only=True)
class MicroOptions:
    """What ``--target tflm`` takes beside what other targets do.

    Attributes:
      keep_names: of tensors, with metadata, signatures and the biases' scales.
      max_arena: bytes that the decoded weights of an operator may take, as people write sizes.
      max_decode: milliseconds that decoding may take by estimate.
    """

    keep_names: bool = False
    max_arena: str | None = None
    max_decode: float | None = None

    @property
    def limits(self) -> Limits:
        """The limits as numbers."""
        arena = None if self.max_arena is None else parse_size(self.max_arena, "--max-arena")
        return Limits(arena=arena, decode_ms=self.max_decode)


def micro_experiment(source: Path, examples: Path, options: MicroOptions, *, max_drop: float) -> Experiment:
    """Compresses a model for TFLM, changing at most ``max_drop`` % of the predictions on half of the examples."""
    limits = options.limits
    return Experiment(
        task=lambda data_dir, progress: micro_task(source, examples, keep_names=options.keep_names, limits=limits),
        methods=(IntegerBinAndQuant(search=micro_search(max_drop / 100, limits), label="for TFLM"),),
    )


def compress_micro(
    source: Path,
    data: Path | None,
    outputs: Outputs,
    options: MicroOptions,
    console: Console,
    *,
    method: str,
    bins: int,
    max_drop: float,
) -> None:
    """Writes a file whose weights stay compressed in TFLM, checks it there where that is installed, and shows it.

    Args:
      source: the ``.tflite`` model.
      data: its examples; without them, weights are as ``method`` makes them.
      outputs: what is written: a ``.tflite`` file, or C source, beside which the ``.tflite`` file is written too.
      options: of the target.
      console: shows the result.
      method: without data ``lossless``, ``gaussian-bins`` or ``kmeans``.
      bins: values a layer, of the latter two.
      max_drop: with data, predictions in a hundred that may change.
    """
    outputs.check()
    out = outputs.out.with_suffix(".tflite") if is_c_source(outputs.out) else outputs.out
    if out != outputs.out and out.exists() and not outputs.force:
        raise ValueError(f"{out} exists, which is written beside {outputs.out.name}: pass --force to overwrite it")
    refuse_same(source, out)
    if data is not None:
        here = Outputs(out=out, report=outputs.report, table=outputs.table, force=outputs.force, command=outputs.command)
        compress_experiment(micro_experiment(source, data, options, max_drop=max_drop), None, here, console)
    else:
        _write(source, out, options, method, bins, outputs.force)
        inspect(out, console=console)
        for line in micro_summary(out, source.stat().st_size):
            say(console, line)
        if method != "lossless":
            say(console, "accuracy was not measured")
    if out != outputs.out:
        with atomic_write(outputs.out, force=outputs.force) as file:
            file.write(c_array(out.read_bytes(), out.stem).encode())
        say(console, f"wrote {outputs.out}, the same as a C array")


def _write(source: Path, out: Path, options: MicroOptions, method: str, bins: int, force: bool) -> None:
    if method != "lossless":
        model = read(source)
        storage = MicroStorage(model, options.keep_names, options.limits)
        try:
            write_checked(storage, out, {**model.params, **binned(model, method, bins)}, force=force)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        return
    try:
        content = micro_content(source.read_bytes(), keep_names=options.keep_names, limits=options.limits)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    with atomic_write(out, force=force) as file:
        file.write(content)
