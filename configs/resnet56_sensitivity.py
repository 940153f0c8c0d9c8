"""The paper's figure 5 for ResNet-56 on CIFAR-10: noise on random weights against noise on those of largest gradient.

bqjax sweep --config configs/resnet56_sensitivity.py --data ../shared/data --out out/resnet56_sensitivity
"""

from bqjax.experiment import RandomAgainstGradient, SweepConfig
from train.tasks import resnet_task

config = SweepConfig(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=56, n_calibration=1000, n_test=1000),
    data="weights/resnet56_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    # Measurements, from which nothing is chosen: on a fixed subset of 1,000 test images. Gradients are taken on 1,000
    # training images.
    split="test",
    figures=(
        # The paper plots the 25 largest layers.
        RandomAgainstGradient(sigma=0.05, draws=8, largest=25),
    ),
)
