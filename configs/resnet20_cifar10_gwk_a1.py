"""ResNet-20 on CIFAR-10, W8/A1: binary activations, clustered as 6/4/6, from trained float weights.

python -m train --config configs/resnet20_cifar10_gwk_a1.py --data-dir DATA
6/4/5: --gwk.bits 5. ResNet-56: --model resnet56 --weights weights/resnet56_cifar10.safetensors
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig

config = TrainConfig(
    model="resnet20",
    dataset="cifar10",
    weights="weights/resnet20_cifar10.safetensors",
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=1, activation_start="mse"),
    # Binary activations first, as float weights cannot be clustered through a network that does not work yet.
    epochs=100,
    gwk=GWKPhase(epochs=100, schedule="step", cv=6, pw=4, bits=6, freeze=0.8, tune_epochs=20),
    batch_size=128,
    distillation=0.5,
)
