"""Which statistic finds the weights of ResNet-56 that matter? The paper's figure 5 with the Fisher information and the curvature.

bqjax sweep --config configs/resnet56_statistics.py --data ../shared/data --out out/resnet56_statistics
"""

from bqjax.experiment import StatisticsAgainstRandom, SweepConfig
from train.tasks import resnet_task

config = SweepConfig(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=56, n_calibration=1000, n_test=1000),
    data="weights/resnet56_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    # Measurements, from which nothing is chosen: on a fixed subset of 1,000 test images. Statistics are those of 1,000
    # training images. The 25 largest layers, as in the paper's figure.
    split="test",
    figures=(StatisticsAgainstRandom(sigma=0.05, draws=4, largest=25),),
)
