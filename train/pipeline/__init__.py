"""Several trainings that start from and learn from one another, and a ledger of their files: all that such a config names."""

from train.image.config import GWKPhase, TrainConfig
from train.image.transfer import Pruning
from train.methods.retrain import Phase, RetrainConfig, Retrained
from train.pipeline.run import PipelineConfig, Stage, run_pipeline
from train.schemes import EWGS, Clusters, Codebooks, Plain, SoftKMeans

__all__ = [
    "EWGS",
    "Clusters",
    "Codebooks",
    "GWKPhase",
    "Phase",
    "PipelineConfig",
    "Plain",
    "Pruning",
    "RetrainConfig",
    "Retrained",
    "SoftKMeans",
    "Stage",
    "TrainConfig",
    "run_pipeline",
]
