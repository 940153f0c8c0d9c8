"""The paper's sensitivity figures (2, 3 and 5) for ResNet-20 on CIFAR-10.

bqjax sweep --config configs/resnet20_sensitivity.py --data ../shared/data --out out/resnet20_sensitivity
"""

from bqjax.experiment import BinsByLayer, NoiseByLayer, RandomAgainstGradient, RelativeBySize, SweepConfig
from train.tasks import resnet_task

config = SweepConfig(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=20, n_calibration=1000, n_test=1000),
    data="weights/resnet20_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    # Measurements, from which nothing is chosen: on a fixed subset of 1,000 test images. Gradients are taken on 1,000
    # training images.
    split="test",
    figures=(
        NoiseByLayer(levels=(0.1, 0.2, 0.4), draws=4),
        BinsByLayer(n_bins=8, magnitude=0.5, draws=4),
        RelativeBySize(magnitude=0.03, draws=4),
        RandomAgainstGradient(sigma=0.05, draws=8),
    ),
)
