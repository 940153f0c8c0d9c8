"""The command line: parsing only; :mod:`bqjax.cli.compress` does the work."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

__all__ = ["main"]


@dataclass(frozen=True)
class Compress:
    """Compress a trained network.

    Either `--config FILE` runs an experiment with a model and data, or WEIGHTS.safetensors is compressed as it is.
    """

    weights: Annotated[Path | None, tyro.conf.Positional] = None
    """Any .safetensors weights; compressed without a model and without data."""
    config: Path | None = None
    """A Python file that defines `config = ExperimentConfig(...)`; see configs/."""
    data: Path | None = None
    """Folder of the data that the config's task reads."""
    out: Path | None = None
    """The file to write; default: beside the weights, or out/NAME OF THE CONFIG, with the ending .bq.safetensors."""
    report: Path | None = None
    """Write a self-contained HTML report here (with --config)."""
    table: Path | None = None
    """Write the results as Markdown here (with --config)."""
    method: Literal["gaussian-bins", "kmeans"] = "gaussian-bins"
    """How WEIGHTS are compressed."""
    bins: int = 16
    """Values a leaf, for WEIGHTS."""
    sigma_scale: float = 1.0
    """Factor on each leaf's standard deviation when Gaussian bins are placed."""
    only: tuple[str, ...] = ()
    """Patterns of the leaves of WEIGHTS to compress; default: floating point, two or more dimensions."""
    skip: tuple[str, ...] = ()
    """Patterns of leaves to leave as they are."""
    coder: Literal["auto", "raw", "zstd", "ans", "huffman"] = "auto"
    """How the indices of WEIGHTS are coded."""
    lossless: bool = False
    """Of a .tflite model: entropy-code only, so that it is restored byte for byte."""
    target_size: str | None = None
    """With --config: plan every layer for a file of at most this size, as 200KB, doing the least distortion."""
    max_drop: float | None = None
    """With --config: plan every layer for the smallest file whose metric drops by at most so many points on calibration data.
    Of a .tflite model with --data: at most so many predictions in a hundred change on the half of the examples that is searched
    on, so that accuracy there drops by no more points; default: 1."""
    confidence: float = 0.5
    """With --config and --max-drop: keep the drop at a one-sided bound of this confidence, as 0.9, from the standard error on the
    calibration data. At 0.5 the drop on the calibration data itself counts, and new data may well show a larger one."""
    force: bool = False
    """Overwrite existing files."""

    def run(self, console: Console, command: str) -> None:
        from bqjax.cli import compress as commands
        from bqjax.cli import compress_budget as budget_command
        from bqjax.cli import compress_tflite as tflite_command
        from bqjax.cli import compress_weights as weights_command
        from bqjax.experiment.config import CompareConfig, ExperimentConfig, load_config
        from bqjax.tflite.experiment import TFLiteConfig

        if (self.weights is None) == (self.config is None):
            raise ValueError("name either WEIGHTS.safetensors or --config FILE")
        # What would have no effect is refused.
        with_data = self.weights is not None and self.weights.suffix == ".tflite" and self.data is not None
        other: tuple[str, ...] = ("method", "bins", "sigma_scale", "only", "skip", "coder", "lossless")
        if self.config is None:
            other = ("report", "method", "bins", "coder", "lossless") if with_data else ("data", "report", "table", "max_drop")
            other = (*other, "target_size", "confidence")
        given = [f.name for f in fields(self) if f.name in other and getattr(self, f.name) != f.default]
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"{options} cannot go with {'WEIGHTS' if self.config is None else '--config'}")
        if self.config is not None:
            out = self.out or Path("out") / f"{self.config.stem}.bq.safetensors"
            if self.max_drop is None and self.confidence != 0.5:
                raise ValueError("--confidence is one of keeping a drop: name it by --max-drop")
            if self.target_size is not None or self.max_drop is not None:
                if self.target_size is not None and self.max_drop is not None:
                    raise ValueError("--target-size cannot go with --max-drop: name one of the two")
                budget_command.compress_within_budget(
                    load_config(self.config, ExperimentConfig, CompareConfig),
                    self.config,
                    self.data,
                    out,
                    target_size=self.target_size,
                    max_drop=self.max_drop,
                    confidence=self.confidence,
                    command=command,
                    report=self.report,
                    table=self.table,
                    force=self.force,
                    console=console,
                )
                return
            config: ExperimentConfig | TFLiteConfig = load_config(self.config, ExperimentConfig, TFLiteConfig)
            if isinstance(config, TFLiteConfig):
                if self.report is not None:
                    raise ValueError("--report cannot go with a .tflite experiment: --table writes its table")
                tflite_command.compress_tflite_config(
                    config, self.data, out, command=command, table=self.table, force=self.force, console=console
                )
                return
            commands.compress_experiment(
                config,
                self.data,
                out,
                command=command,
                report=self.report,
                table=self.table,
                force=self.force,
                console=console,
            )
        elif self.weights is not None and self.weights.suffix == ".tflite":
            ignored = [
                name
                for name in ("only", "skip", "sigma_scale")
                if getattr(self, name) != Compress.__dataclass_fields__[name].default
            ]
            if self.lossless:
                ignored += [
                    name for name in ("method", "bins") if getattr(self, name) != Compress.__dataclass_fields__[name].default
                ]
            if ignored:
                options = ", ".join("--" + name.replace("_", "-") for name in ignored)
                raise ValueError(f"{options} cannot go with {'--lossless' if self.lossless else 'a .tflite model'}")
            if self.data is not None:
                tflite_command.compress_tflite_with_data(
                    self.weights,
                    self.data,
                    self.out or self.weights.with_suffix(".bq.safetensors"),
                    max_drop=1.0 if self.max_drop is None else self.max_drop,
                    command=command,
                    table=self.table,
                    force=self.force,
                    console=console,
                )
                return
            tflite_command.compress_tflite(
                self.weights,
                self.out or self.weights.with_suffix(".bq.safetensors"),
                lossless=self.lossless,
                method=self.method,
                bins=self.bins,
                coder=self.coder,
                force=self.force,
                console=console,
            )
        elif self.weights is not None:
            if self.lossless:
                raise ValueError("--lossless is for .tflite models")
            weights_command.compress_weights(
                self.weights,
                self.out or self.weights.with_suffix(".bq.safetensors"),
                method=self.method,
                bins=self.bins,
                sigma_scale=self.sigma_scale,
                only=self.only,
                skip=self.skip,
                coder=self.coder,
                force=self.force,
                console=console,
            )


@dataclass(frozen=True)
class Decompress:
    """Decode a .bq.safetensors file to plain .safetensors weights. Needs no model."""

    file: tyro.conf.Positional[Path]
    """The compressed file."""
    out: Path
    """The weights to write."""
    force: bool = False
    """Overwrite an existing file."""

    def run(self, console: Console, command: str) -> None:
        from bqjax.cli import files

        files.decompress(self.file, self.out, force=self.force, console=console)


@dataclass(frozen=True)
class Inspect:
    """Show what a .bq.safetensors file holds, leaf by leaf. Needs no model."""

    file: tyro.conf.Positional[Path]
    """The compressed file."""

    def run(self, console: Console, command: str) -> None:
        from bqjax.cli import files

        files.inspect(self.file, console=console)


@dataclass(frozen=True)
class Sweep:
    """Measure how sensitive a network is to changes of its weights, layer by layer.

    Writes sweep.csv, sweep.json, report.html and each figure as .png and .svg. Interrupted, the same command goes on.
    """

    config: Path
    """A Python file that defines `config = SweepConfig(...)`; see configs/."""
    data: Path | None = None
    """Folder of the data that the config's task reads."""
    out: Path | None = None
    """The folder to write into; default: out/NAME OF THE CONFIG."""
    examples: int | None = None
    """Score on the first so many examples only; default: as the config says."""
    force: bool = False
    """Overwrite the results of an earlier sweep."""

    def run(self, console: Console, command: str) -> None:
        from bqjax.cli.sweep import sweep_network
        from bqjax.experiment.config import SweepConfig, load_config

        sweep_network(
            load_config(self.config, SweepConfig),
            self.data,
            self.out or Path("out") / self.config.stem,
            command=command,
            examples=self.examples,
            force=self.force,
            console=console,
        )


@dataclass(frozen=True)
class Compare:
    """Compare compression methods on one network: accuracy on test data against bytes of the file.

    Writes compare.md, compare.csv, compare.json, pareto.png, pareto.svg, report.html and, under rows/, every compressed file.
    Interrupted, the same command goes on; rows that are done are not run again.
    """

    config: Path
    """A Python file that defines `config = CompareConfig(...)`; see configs/."""
    data: Path | None = None
    """Folder of the data that the config's task reads."""
    out: Path | None = None
    """The folder to write into; default: out/NAME OF THE CONFIG."""
    force: bool = False
    """Run rows that are done again, and overwrite the results of another comparison."""
    parallel: bool = False
    """Run rows side by side, one on each device, where a device has room for a row; without it rows run one after the other, and a
    search spreads its candidates over the devices."""

    def run(self, console: Console, command: str) -> None:
        from bqjax.cli.compare import compare_methods
        from bqjax.experiment.config import CompareConfig, load_config

        compare_methods(
            load_config(self.config, CompareConfig),
            self.data,
            self.out or Path("out") / self.config.stem,
            command=command,
            force=self.force,
            parallel=self.parallel,
            console=console,
        )


Command = (
    Annotated[Compress, tyro.conf.subcommand("compress")]
    | Annotated[Decompress, tyro.conf.subcommand("decompress")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of ``bqjax``; returns the exit status."""
    args = sys.argv[1:] if args is None else list(args)
    command = tyro.cli(Command, prog="bqjax", description="Makes trained neural networks small.", args=args)
    try:
        # Wide enough for the tables where the output is a file or a pipe.
        console = Console() if sys.stdout.isatty() else Console(width=160)
        command.run(console, f"bqjax {shlex.join(args)}")
    except (ValueError, OSError, ImportError) as error:
        print(f"bqjax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bqjax: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
