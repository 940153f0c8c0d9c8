"""ResNet-56 on CIFAR-10, W8/A8, clustered as 6/4/5, from trained float weights.

python -m train --config configs/resnet56_cifar10_gwk.py --data-dir DATA
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig

config = TrainConfig(
    model="resnet56",
    dataset="cifar10",
    weights="weights/resnet56_cifar10.safetensors",
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=8),
    gwk=GWKPhase(epochs=16, schedule="step", cv=6, pw=4, bits=5, rate=0.6, freeze=0.8, tune_epochs=4),
    batch_size=128,
    distillation=0.5,
)
