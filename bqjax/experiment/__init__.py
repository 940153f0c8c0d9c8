"""One run path: a task and methods become rows, each a file that was written, read back, decoded and scored."""

from bqjax.experiment.comparison import run
from bqjax.experiment.config import Experiment, SweepConfig, load_config
from bqjax.experiment.entry import Comparison, Entry, pareto_front
from bqjax.experiment.figures import BinsByLayer, NoiseByLayer, RandomAgainstGradient, RelativeBySize, StatisticsAgainstRandom
from bqjax.experiment.recipes import Recipe, make_recipe, read_sweep
from bqjax.experiment.row import Reference, Row, reference
from bqjax.experiment.runner import Outcome, run_row
from bqjax.experiment.sweep import Sweeps, run_sweep

__all__ = [
    "BinsByLayer",
    "Comparison",
    "Entry",
    "Experiment",
    "NoiseByLayer",
    "Outcome",
    "RandomAgainstGradient",
    "Recipe",
    "Reference",
    "RelativeBySize",
    "Row",
    "StatisticsAgainstRandom",
    "SweepConfig",
    "Sweeps",
    "load_config",
    "make_recipe",
    "pareto_front",
    "read_sweep",
    "reference",
    "run",
    "run_row",
    "run_sweep",
]
