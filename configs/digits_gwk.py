"""A small network for digits with clustered weights, below 1.1 bits a weight: seconds, and no download.

python -m train --config configs/digits_gwk.py
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig

config = TrainConfig(
    model="digits",
    dataset="digits",
    float_epochs=15,
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=8),
    gwk=GWKPhase(epochs=40, schedule="step", cv=4, pw=8, bits=5, rate=0.3, tune_epochs=20),
    keep_float=("conv1", "fc2"),
    batch_size=64,
    learning_rate=3e-3,
    distillation=0.5,
)
