"""A sweep of the tiny network, measured once."""

from __future__ import annotations

import functools

from tiny import tiny_task

from bqjax.experiment import BinsByLayer, NoiseByLayer, RandomAgainstGradient, RelativeBySize, SweepConfig, run_sweep

FIGURES = (
    NoiseByLayer(levels=(0.3, 1.0), draws=2),
    BinsByLayer(n_bins=4, draws=2),
    RelativeBySize(draws=2),
    RandomAgainstGradient(sigma=0.3, draws=4),
)


CONFIG = SweepConfig(task=tiny_task, figures=FIGURES, split="test")


@functools.cache
def swept():
    return run_sweep(CONFIG, tiny_task())
