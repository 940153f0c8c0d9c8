"""Methods without retraining on ResNet-20 for CIFAR-10, all 10,000 test images.

bqjax compare --config configs/resnet20.py --data DATA --out out/resnet20
bqjax compare --config configs/resnet20.py --data DATA --out out/resnet20 --method "Gaussian*" "k-means*"    # minutes, not hours
bqjax compress --config configs/resnet20.py --data DATA --max-drop 0.5 --out out/resnet20_drop.bq.safetensors
bqjax compress --config configs/resnet20.py --data DATA --target-size 120KB --plan --out out/resnet20_120.bq.safetensors
"""

from bqjax import Rule
from bqjax.experiment import Experiment
from bqjax.methods import (
    GWK,
    PTQ,
    BinConfig,
    BudgetConfig,
    DeepCompression,
    DeepCompressionConfig,
    EvenConfig,
    EvenLevels,
    GaussianBins,
    GWKConfig,
    KMeans,
    PTQConfig,
    RateConfig,
    RateDistortion,
    WithinBudget,
)
from train.tasks import resnet_task

# Two to five bits a weight are what the planned sizes ask for: 16 values are too few to start from, blocks of 64 as well.
BUDGET = BudgetConfig(bins=(64,), blocks=(), exponents=(-10.0, -8.5, -7.0, -5.5, -4.0, -2.5), refine=0)
# The first convolution has 432 weights and the head 640: eight bits of blocks would be larger than they are.
SMALL = (Rule("conv1/kernel", GWKConfig(bits=5, cv=2, weighting="none")), Rule("linear/kernel", 5), Rule("*/kernel"))

config = Experiment(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=20),
    data="weights/resnet20_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
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
        *(EvenLevels(config=EvenConfig(rtol=e), label=f"even levels, {100 * e:g} %") for e in (0.05, 0.1)),
        *(
            GWK(config=GWKConfig(bits=8, cv=2, pw=2, weighting=weighting), rules=SMALL, label=f"{name}, 8 bits for 2")
            for name, weighting in (("PQ", "none"), ("GWK", "block"))
        ),
        PTQ(config=PTQConfig(bits=5, limits="mse", scale_dtype="bfloat16"), label="PTQ, 5 bits a channel"),
        DeepCompression(config=DeepCompressionConfig(sparsity=0.3, k=16), label="30% pruned, 16 values"),
        # One row after the other, they share what was measured of the layers.
        *(WithinBudget(target_bytes=1000 * kb, budget=BUDGET, label=f"planned, {kb} kB") for kb in (120, 90, 160)),
        # Error feedback under the outputs' curvature: half a minute a row, after a minute for the curvature.
        *(RateDistortion(lmbda=p, label=f"rate-distortion, lmbda {p:g}") for p in (7e-06, 2e-05, 4e-05, 7e-05)),
        RateDistortion(target_bytes=75_000, label="rate-distortion, 75 kB"),
    ),
    budget=BUDGET,
)
