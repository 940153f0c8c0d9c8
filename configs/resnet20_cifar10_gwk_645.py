"""ResNet-20 on CIFAR-10, W8/A8, clustered as 6/4/5 (the paper's) within the training loop, from trained float weights.

python -m train --config configs/resnet20_cifar10_gwk_645.py --data-dir DATA
As in the paper, replaced after each epoch and nothing else:
    --gwk.schedule epoch --gwk.epochs 400 --gwk.rate 0 --gwk.tune-epochs 0 --distillation 0
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig

config = TrainConfig(
    model="resnet20",
    dataset="cifar10",
    weights="weights/resnet20_cifar10.safetensors",
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=8),
    gwk=GWKPhase(epochs=8, schedule="step", cv=6, pw=4, bits=5, rate=0.6, freeze=0.8, tune_epochs=12, tune_learning_rate=1e-3),
    batch_size=128,
    distillation=0.5,
)
