"""A small network for digits, trained with EWGS at one bit a weight: seconds, and no download.

python -m train --config configs/digits_ewgs.py
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import TrainConfig

config = TrainConfig(
    model="digits",
    dataset="digits",
    float_epochs=15,
    epochs=15,
    quantizer=QuantizerConfig(weight_bits=1, activation_bits=8),
    keep_float=("conv1", "fc2"),
    batch_size=64,
    learning_rate=3e-3,
)
