"""MobileNetV2 on ImageNet, W8/A8, clustered as 6/8/4: trained in float first. For an accelerator; not run by us.

python -m train --config configs/mobilenet_v2_imagenet_gwk.py --data-dir DATA
By the formula 0.516 bits a weight of the 34 pointwise convolutions, and 3.42 over all kernels, the others (first,
depthwise, dense) at 8 bits; the paper prints 3.44. The dense layer alone is 2.95 of it. 6/8/6 is 3.60: --gwk.bits 6
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig

config = TrainConfig(
    model="mobilenet_v2",
    dataset="imagenet2012",
    float_epochs=150,
    quantizer=QuantizerConfig(weight_bits=8, activation_bits=8),
    gwk=GWKPhase(epochs=30, schedule="step", cv=6, pw=8, bits=4, freeze=0.8, tune_epochs=10),
    batch_size=256,
    weight_decay=4e-5,
    distillation=0.5,
)
