"""python -m train --config configs/resnet20_cifar10_090.py --data-dir DATA --out out/resnet20_090

ResNet-20 on CIFAR-10, W8/A8, at 0.90 bits a weight over all kernels: blocks start from the solver, latent weights and codebooks
train together with bits in the choice of blocks, which stay for the last fifth. Started again, a run goes on from its
last epoch. For a quiet machine with hours: 18 epochs. Whole kernels of the second and third stage share a codebook of 256, rows of
three of the first one of 32, numbers of 6 bits; indices take 0.83 bits a clustered weight, codebooks, first convolution and
head the rest.
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKLayers, GWKPhase, TrainConfig

config = TrainConfig(
    model="resnet20",
    dataset="cifar10",
    weights="weights/resnet20_cifar10.safetensors",
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=8, activation_start="mse"),
    gwk=GWKPhase(
        epochs=18,
        schedule="step",
        start="solver",
        lmbda=2e-4,
        bits_per_weight=0.83,
        codebook_bits=6,
        refresh_steps=4,
        layers=(
            GWKLayers(pattern="layer1/*", cv=3, bits=5, group="layer1"),
            GWKLayers(pattern="layer[23]/*", cv=9, bits=8, group="rest"),
        ),
        equalize=True,
        freeze=0.8,
    ),
    batch_size=128,
    statistics_examples=10_000,
    learning_rate=3e-4,
    distillation=0.5,
    vector_bits=8,
)
