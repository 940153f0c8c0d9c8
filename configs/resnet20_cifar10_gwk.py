"""ResNet-20 on CIFAR-10, W8/A8, clustered within the training loop, from trained float weights.

python -m train --config configs/resnet20_cifar10_gwk.py --data-dir DATA

Whole 3x3 kernels are blocks: those of the second and third stage share 256 of them, which cost less than 18 codebooks of 32 blocks
of 6; the first stage, 5 % of the weights and the most sensitive, shares 32 rows of three. The paper's 6/4/5 for every layer:
    configs/resnet20_cifar10_gwk_645.py
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKLayers, GWKPhase, TrainConfig

config = TrainConfig(
    model="resnet20",
    dataset="cifar10",
    weights="weights/resnet20_cifar10.safetensors",
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=8),
    gwk=GWKPhase(
        epochs=9,
        schedule="step",
        layers=(
            GWKLayers(pattern="layer1/*", cv=3, bits=5, group="layer1"),
            GWKLayers(pattern="layer2/*", cv=9, bits=8, group="rest", index_bits=7.2),
            GWKLayers(pattern="layer3/*", cv=9, bits=8, group="rest", index_bits=6.85),
        ),
        equalize=True,
        freeze=0.8,
        tune_epochs=5,
        tune_learning_rate=1e-3,
    ),
    batch_size=128,
    distillation=0.5,
)
