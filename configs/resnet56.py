"""Methods without retraining on ResNet-56 for CIFAR-10, all 10,000 test images.

bqjax compare --config configs/resnet56.py --data DATA --out out/resnet56
bqjax compress --config configs/resnet56.py --data DATA --target-size 200KB --out out/resnet56_200.bq.safetensors
"""

from bqjax import Rule
from bqjax.experiment import Experiment
from bqjax.methods import (
    GWK,
    PTQ,
    BinConfig,
    EvenConfig,
    EvenLevels,
    GaussianBins,
    GWKConfig,
    KMeans,
    PTQConfig,
    RateConfig,
    RateDistortion,
)
from train.tasks import resnet_task

# The first convolution has 432 weights and the head 640: eight bits of blocks would be larger than they are.
SMALL = (Rule("conv1/kernel", GWKConfig(bits=5, cv=2, weighting="none")), Rule("linear/kernel", 5), Rule("*/kernel"))

config = Experiment(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=56, n_calibration=500),
    data="weights/resnet56_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    methods=(
        *(KMeans(k=k, label=f"k-means, {k}") for k in (16, 32)),
        *(EvenLevels(config=EvenConfig(rtol=e), label=f"even levels, {100 * e:g} %") for e in (0.05, 0.1)),
        *(
            GaussianBins(
                bins=BinConfig(n_bins=32, sigma_scale=2.0), rate=RateConfig(lmbda=p), label=f"B&Q, entropy-constrained, lmbda {p:g}"
            )
            for p in (1.25e-06, 3.75e-06, 1.25e-05)
        ),
        GWK(config=GWKConfig(bits=8, cv=2, pw=2, weighting="none"), rules=SMALL, label="PQ, 8 bits for 2"),
        PTQ(config=PTQConfig(bits=5, limits="mse", scale_dtype="bfloat16"), label="PTQ, 5 bits a channel"),
        GaussianBins(bins=BinConfig(n_bins=16, sigma_scale=2.0), label="Gaussian bins of 2 sigma, 16"),
        *(RateDistortion(lmbda=p, label=f"rate-distortion, lmbda {p:g}") for p in (2e-06, 4e-06, 6e-06, 9e-06)),
        RateDistortion(target_bytes=200_000, label="rate-distortion, 200 kB"),
    ),
)
