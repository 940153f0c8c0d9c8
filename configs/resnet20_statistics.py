"""Which statistic finds the weights of ResNet-20 that matter? The paper's figure 5 with the Fisher information and the curvature.

bqjax sweep --config configs/resnet20_statistics.py --data ../shared/data --out out/resnet20_statistics
"""

from bqjax.experiment import StatisticsAgainstRandom, SweepConfig
from train.tasks import resnet_task

config = SweepConfig(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=20, n_calibration=1000, n_test=1000),
    data="weights/resnet20_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    # Measurements, from which nothing is chosen: on a fixed subset of 1,000 test images. Statistics are those of 1,000
    # training images.
    split="test",
    figures=(StatisticsAgainstRandom(sigma=0.05, draws=8),),
)
