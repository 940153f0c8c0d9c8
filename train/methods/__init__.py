"""Methods that train on, behind the interface of those that do not, and the schemes that they train through."""

from train.methods.retrain import Phase, RetrainConfig, Retrained, TrainingTask
from train.methods.saved import SavedFile
from train.schemes import EWGS, Clusters, Codebooks, Plain, Scheme, SoftKMeans

__all__ = [
    "EWGS",
    "Clusters",
    "Codebooks",
    "Phase",
    "Plain",
    "RetrainConfig",
    "Retrained",
    "SavedFile",
    "Scheme",
    "SoftKMeans",
    "TrainingTask",
]
