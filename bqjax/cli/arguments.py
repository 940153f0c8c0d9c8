"""The command line: parsing only; a module for each command does the work."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from bqjax.cli.compress_arguments import Compress

__all__ = ["main"]


@dataclass(frozen=True)
class Decompress:
    """Decode a .bq.safetensors file to plain .safetensors weights, or to the folder that it was made of. Needs no model."""

    file: tyro.conf.Positional[Path]
    """The compressed file."""
    out: Path
    """The weights to write: a folder where it was made of one, with its config and tokenizer, or a file whose name ends
    in .safetensors."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of all floating-point tensors; default: what each was."""
    force: bool = False
    """Overwrite an existing file."""

    def run(self, console: Console, command: str) -> None:
        from bqjax.cli import files

        files.decompress(self.file, self.out, dtype=self.dtype, force=self.force, console=console)


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
    until: str | None = None
    """Score only as many draws and examples as a question needs: `rank` (the order of the layers in each series), `top10` (the ten
    that drop most; any number), or a standard error, as 0.002."""
    confidence: float = 0.95
    """With --until: of all its statements together."""
    tolerance: float = 0.0
    """With --until: layers whose drops differ by less count as equal, in points; where the metric is no share, in its unit."""
    budget: float | None = None
    """With --until top10: spend this part of the full sweep's evaluations, as 0.2, and say how sure each layer's place is."""
    predict: bool = False
    """Predict every drop from the curvature of the network's outputs, too, and draw predicted against measured ones."""
    max_drop: float = 1.0
    """Of the metric, in points (nats, losses and cosines as they are): what recipe.md may cost, the table of bits that is made
    where layers had Gaussian noise."""
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
            until=self.until,
            confidence=self.confidence,
            tolerance=self.tolerance,
            budget=self.budget,
            predict=self.predict,
            max_drop=self.max_drop,
            force=self.force,
            console=console,
        )


@dataclass(frozen=True)
class Compare:
    """Compare the methods of a config on its network: accuracy on test data against bytes of the file.

    Writes compare.md, compare.csv, compare.json, pareto.png, pareto.svg, report.html and, under rows/, every compressed file.
    Interrupted, the same command goes on; rows that are done are not run again.
    """

    config: Path
    """A Python file that defines `config = Experiment(...)`; see configs/."""
    data: Path | None = None
    """Folder of the data that the config's task reads."""
    out: Path | None = None
    """The folder to write into; default: out/NAME OF THE CONFIG."""
    method: tuple[str, ...] = ()
    """Labels of the methods to run, or patterns of them, as "k-means*"; default: all."""
    force: bool = False
    """Run rows that are done again, and overwrite the results of another comparison."""
    parallel: bool = False
    """Run rows side by side, one on each device, where a device has room for a row; without it rows run one after the other, and a
    search spreads its candidates over the devices."""

    def run(self, console: Console, command: str) -> None:
        from bqjax.cli.compare import compare_methods
        from bqjax.experiment.config import Experiment, load_config

        compare_methods(
            load_config(self.config, Experiment).only(self.method),
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
        from bqjax.cli.compilation_cache import use_compilation_cache

        use_compilation_cache()
        command.run(console, f"bqjax {shlex.join(args)}")
    except FileNotFoundError as error:
        print(f"bqjax: error: no file {error.filename}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError) as error:
        print(f"bqjax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bqjax: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
