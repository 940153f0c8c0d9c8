"""Methods compared without retraining on ResNet-56 for CIFAR-10, all 10,000 test images.

bqjax compare --config configs/compare_resnet56.py --data DATA --out out/compare_resnet56
"""

import dataclasses

from bqjax.adapters.flax import nnx_apply
from bqjax.core.classification import classification_outputs
from bqjax.core.rules import Rule
from bqjax.experiment.config import CompareConfig
from bqjax.methods.baselines.methods import PTQ, KMeans
from bqjax.methods.baselines.ptq import PTQConfig
from bqjax.methods.bins import RateConfig
from bqjax.methods.bins.gaussian import BinConfig
from bqjax.methods.bins.method import GaussianBins
from bqjax.methods.gwk.cluster import GWKConfig
from bqjax.methods.gwk.method import GWK
from bqjax.models.resnet import load_resnet
from train.tasks.cifar import resnet_task

DEPTH = 56


def task(data_dir, progress):
    """The network with its logits, which the importance of weights is taken from."""
    apply = nnx_apply(load_resnet(data_dir / "weights" / f"resnet{DEPTH}_cifar10.safetensors"))
    return dataclasses.replace(resnet_task(data_dir, depth=DEPTH, n_calibration=500), outputs=classification_outputs(apply))


# The first convolution has 432 weights and the head 640: eight bits of blocks would be larger than they are.
SMALL = (Rule("conv1/kernel", GWKConfig(bits=5, cv=2, weighting="none")), Rule("linear/kernel", 5), Rule("*/kernel"))

config = CompareConfig(
    task=task,
    data=f"weights/resnet{DEPTH}_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    methods=(
        *(KMeans(k=k, label=f"k-means, {k}") for k in (16, 32)),
        *(
            GaussianBins(
                bins=BinConfig(n_bins=32, sigma_scale=2.0), rate=RateConfig(lmbda=p), label=f"B&Q, entropy-constrained, lmbda {p:g}"
            )
            for p in (1.25e-06, 3.75e-06, 1.25e-05)
        ),
        GWK(config=GWKConfig(bits=8, cv=2, pw=2, weighting="none"), rules=SMALL, label="PQ, 8 bits for 2"),
        PTQ(config=PTQConfig(bits=5, limits="mse"), label="PTQ, 5 bits a channel"),
        GaussianBins(bins=BinConfig(n_bins=16, sigma_scale=2.0), label="Gaussian bins of 2 sigma, 16"),
    ),
)
