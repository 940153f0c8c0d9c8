"""ResNet-20 on CIFAR-10 with weights of one bit and activations of eight, from trained float weights (EWGS 1/8).

python -m train --config configs/resnet20_cifar10_ewgs.py --data-dir DATA
Other bits, and the baselines beside it: --quantizer.activation-bits 1, --quantizer.rounding dsq (or irnet, ste)
"""

from bqjax.quantizers import QuantizerConfig
from train.image.config import TrainConfig

# The training of the EWGS authors: 400 epochs, batches of 256, Adam.
config = TrainConfig(
    model="resnet20",
    dataset="cifar10",
    weights="weights/resnet20_cifar10.safetensors",
    epochs=400,
    quantizer=QuantizerConfig(weight_bits=1, activation_bits=8, rounding="ewgs", delta=1e-3),
)
