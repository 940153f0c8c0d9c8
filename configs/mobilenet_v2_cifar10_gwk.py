"""MobileNetV2 on CIFAR-10, W8/A8, clustered as 6/8/6: trained in float first. For an accelerator.

python -m train --config configs/mobilenet_v2_cifar10_gwk.py --data-dir DATA
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig

config = TrainConfig(
    model="mobilenet_v2",
    dataset="cifar10",
    float_epochs=200,
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=8),
    gwk=GWKPhase(epochs=80, schedule="step", cv=6, pw=8, bits=6, rate=0.6, freeze=0.8, tune_epochs=20),
    batch_size=128,
    distillation=0.5,
)
