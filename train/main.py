"""Command line of training: ``python -m train --config configs/digits_ewgs.py [--data-dir DIR] [--out DIR] [--epochs N ...]``."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console

from bqjax.experiment import load_config
from bqjax.report.console import progress_bar
from train.image.config import TrainConfig
from train.image.loop import run, score
from train.pipeline import PipelineConfig, run_pipeline
from train.speech.config import SpeechConfig
from train.speech.loop import run_speech

__all__ = ["Flags", "PipelineFlags", "main"]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Trains a network as a config file says. Fields of the config can be given as flags, too: --epochs 20.

    Attributes:
      config: a Python file that defines ``config = TrainConfig(...)``, ``SpeechConfig(...)`` or ``PipelineConfig(...)``; it is run.
      data_dir: folder with the data sets and weights.
      out: folder of the run, out/NAME of the config file by default; started again, a run goes on from its last epoch.
      score: the file of a run of this config, model.bq.safetensors, to decode and score on the test data; nothing is trained.
      distributed: one process of several: jax.distributed finds the others from its environment variables
        (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, or those of the cluster).
    """

    config: Path
    data_dir: Path | None = None
    out: Path | None = None
    score: Path | None = None
    distributed: bool = False


@dataclass(frozen=True, kw_only=True)
class PipelineFlags:
    """What can be changed of a pipeline by flags.

    Attributes:
      seeds: all of it is done once for each.
      train_examples: how many of the training examples to use; None uses all.
    """

    seeds: tuple[int, ...]
    train_examples: int | None = None


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status, 2 for what the user can put right."""
    flags, rest = tyro.cli(Flags, args=args, prog="python -m train", return_unknown_args=True)
    console = Console(stderr=True)
    try:
        config = load_config(flags.config, TrainConfig, SpeechConfig, PipelineConfig)
        piped = isinstance(config, PipelineConfig)
        changed = tyro.cli(
            PipelineFlags if piped else type(config),
            args=rest,
            default=PipelineFlags(seeds=config.seeds, train_examples=config.train_examples) if piped else config,
            prog=f"python -m train --config {flags.config}",
            config=(tyro.conf.AvoidSubcommands,),  # --gwk.schedule and not a subcommand of its own
        )
        config = dataclasses.replace(config, **dataclasses.asdict(changed)) if piped else changed
        if flags.distributed:
            if not isinstance(config, TrainConfig):
                raise ValueError("speech recognition and pipelines are trained by one process: leave --distributed out")
            jax.distributed.initialize(
                os.environ.get("JAX_COORDINATOR_ADDRESS"), _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
            )
        out = flags.out or Path("out") / flags.config.stem
        if flags.score is not None:
            if not isinstance(config, TrainConfig):
                raise ValueError(f"--score is for configs of images, TrainConfig; {flags.config} is {type(config).__name__}")
            print(f"{flags.score}: {score(config, flags.score, out, flags.data_dir)}")
            return 0
        with progress_bar(console, flags.config.stem) as progress:
            train: Any = {SpeechConfig: run_speech, PipelineConfig: run_pipeline, TrainConfig: run}[type(config)]
            figures = train(config, out, flags.data_dir, progress=progress, say=lambda line: console.print(line, markup=False))
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in figures.items():
        print(f"{name} on the test data: {value:.2%}")
    return 0


def _number(variable: str) -> int | None:
    return int(os.environ[variable]) if variable in os.environ else None
