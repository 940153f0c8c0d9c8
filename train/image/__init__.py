"""Training of image classifiers: float, quantized, clustered, pruned and distilled."""

from train.image.config import GWKLayers, GWKPhase, TrainConfig
from train.image.transfer import Pruning

__all__ = ["GWKLayers", "GWKPhase", "Pruning", "TrainConfig"]
