"""What the curvature predicts of noise on the layers of ResNet-20, against what it costs: where does the prediction break?

bqjax sweep --config configs/resnet20_predictions.py --data ../shared/data --predict --examples 250 --out out/resnet20_predictions
"""

from bqjax.experiment import NoiseByLayer, SweepConfig
from train.tasks import resnet_task

config = SweepConfig(
    task=lambda data_dir, progress: resnet_task(data_dir, depth=20, n_calibration=250, n_test=1000),
    data="weights/resnet20_cifar10.safetensors and tfds/cifar10 (see train/tasks/cifar.py)",
    # Measurements, from which nothing is chosen: on a fixed subset of test images. The curvature is that of 250 training images.
    split="test",
    figures=(NoiseByLayer(levels=(0.05, 0.1, 0.2, 0.4, 0.8), draws=4),),
)
