"""Methods compared without retraining on ResNet-20 for CIFAR-10, all 10,000 test images.

bqjax compare --config configs/compare_resnet20.py --data DATA --out out/compare_resnet20
bqjax compress --config configs/compare_resnet20.py --data DATA --target-size 120KB --out out/resnet20_120.bq.safetensors
"""

import dataclasses

from bqjax.adapters.flax import nnx_apply
from bqjax.core.classification import classification_outputs
from bqjax.core.rules import Rule
from bqjax.experiment.config import CompareConfig
from bqjax.methods.baselines.deep_compression import DeepCompressionConfig
from bqjax.methods.baselines.methods import PTQ, DeepCompression, KMeans
from bqjax.methods.baselines.ptq import PTQConfig
from bqjax.methods.bins import RateConfig
from bqjax.methods.bins.gaussian import BinConfig
from bqjax.methods.bins.method import GaussianBins
from bqjax.methods.budget.plan import BudgetConfig
from bqjax.methods.gwk.cluster import GWKConfig
from bqjax.methods.gwk.method import GWK
from bqjax.models.resnet import load_resnet
from train.tasks.cifar import resnet_task

DEPTH = 20


def task(data_dir, progress):
    """The network with its logits, which the importance of weights is taken from."""
    apply = nnx_apply(load_resnet(data_dir / "weights" / f"resnet{DEPTH}_cifar10.safetensors"))
    return dataclasses.replace(resnet_task(data_dir, depth=DEPTH), outputs=classification_outputs(apply))


# The first convolution has 432 weights and the head 640: eight bits of blocks would be larger than they are.
SMALL = (Rule("conv1/kernel", GWKConfig(bits=5, cv=2, weighting="none")), Rule("linear/kernel", 5), Rule("*/kernel"))

config = CompareConfig(
    task=task,
    data=f"weights/resnet{DEPTH}_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    methods=(
        # Bin & Quant without its search, which scores every bin of every layer: half an hour here. The lowest lmbda needs 32.
        *(
            GaussianBins(
                bins=BinConfig(n_bins=32, sigma_scale=1.6), rate=RateConfig(lmbda=p), label=f"B&Q, entropy-constrained, lmbda {p:g}"
            )
            for p in (3.75e-06, 1.5e-05, 4.375e-05, 8.75e-05)
        ),
        *(GaussianBins(bins=BinConfig(n_bins=n, sigma_scale=2.0), label=f"Gaussian bins of 2 sigma, {n}") for n in (16, 32)),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (8, 16, 32)),
        *(
            GWK(config=GWKConfig(bits=8, cv=2, pw=2, weighting=weighting), rules=SMALL, label=f"{name}, 8 bits for 2")
            for name, weighting in (("PQ", "none"), ("GWK", "block"))
        ),
        PTQ(config=PTQConfig(bits=5, limits="mse"), label="PTQ, 5 bits a channel"),
        DeepCompression(config=DeepCompressionConfig(sparsity=0.3, k=16), label="30% pruned, 16 values"),
    ),
    # Two to five bits a weight are what the sizes above ask for: 16 values are too few to start from, blocks of 64 as well.
    budget=BudgetConfig(bins=(64,), blocks=(), exponents=(-10.0, -8.5, -7.0, -5.5, -4.0, -2.5), refine=0),
)
