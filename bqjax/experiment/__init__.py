"""One run path: a task and methods become rows, each a file that was written, read back, decoded and scored."""

from bqjax.experiment.config import CompareConfig, ExperimentConfig, SweepConfig, load_config
from bqjax.experiment.figures import BinsByLayer, NoiseByLayer, RandomAgainstGradient, RelativeBySize
from bqjax.experiment.row import Reference, Row, reference

__all__ = [
    "BinsByLayer",
    "CompareConfig",
    "ExperimentConfig",
    "NoiseByLayer",
    "RandomAgainstGradient",
    "Reference",
    "RelativeBySize",
    "Row",
    "SweepConfig",
    "load_config",
    "reference",
]
