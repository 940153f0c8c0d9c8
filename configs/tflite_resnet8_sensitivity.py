"""Figure 3 of the paper for ResNet-8 for CIFAR-10 (int8): +-3 % noise on the codes of each layer, by size.

bqjax sweep --config configs/tflite_resnet8_sensitivity.py --data ../shared/data --out out/tflite_resnet8_sensitivity
"""

from bqjax.experiment import RelativeBySize, SweepConfig
from bqjax.tflite import Examples, quantized_task, to_int8
from train.data.tfds import cifar10


def task(data_dir, progress):
    """The first test images."""
    images, labels = cifar10(data_dir, "test")
    return quantized_task(data_dir / "tflite/resnet8_cifar10_int8.tflite", Examples(to_int8(images[:2000]), labels[:2000]))


config = SweepConfig(
    task=task,
    data="tflite/resnet8_cifar10_int8.tflite and tfds/cifar10 (see train/data/tfds.py)",
    # A measurement, from which nothing is chosen.
    split="test",
    figures=(RelativeBySize(magnitude=0.03, draws=8),),
)
