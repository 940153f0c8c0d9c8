"""Methods without data compared on ResNet-20 for CIFAR-10, on 1,000 test images: minutes where compare_resnet20.py takes an hour.

bqjax compare --config configs/compare_resnet20_quick.py --data DATA --out out/compare_resnet20_quick
"""

from bqjax.experiment.config import CompareConfig
from bqjax.methods.baselines.methods import KMeans
from bqjax.methods.bins.gaussian import BinConfig
from bqjax.methods.bins.method import GaussianBins
from train.tasks.cifar import resnet_task

config = CompareConfig(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=20, n_calibration=250, n_test=1000),
    data="weights/resnet20_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    methods=(
        *(GaussianBins(bins=BinConfig(n_bins=n, sigma_scale=2.0), label=f"Gaussian bins of 2 sigma, {n}") for n in (8, 16, 32)),
        *(GaussianBins(bins=n, label=f"Gaussian bins, {n}") for n in (16, 32)),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (8, 16, 32)),
    ),
)
