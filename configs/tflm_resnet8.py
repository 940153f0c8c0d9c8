"""ResNet-8 for CIFAR-10 (int8 per channel) with weights that stay compressed in TensorFlow Lite Micro.

bqjax compress --config configs/tflm_resnet8.py --data ../shared/data --out out/tflm_resnet8.tflite
"""

from bqjax.experiment import Experiment
from bqjax.tflite import Examples, IntegerBinAndQuant, to_int8
from bqjax.tflite.micro.task import micro_search, micro_task
from train.data.tfds import cifar10

IMAGES = slice(2000, 6000)


def task(data_dir, progress):
    """Test images that configs/tflite_resnet8.py does not have."""
    images, labels = cifar10(data_dir, "test")
    return micro_task(data_dir / "tflite/resnet8_cifar10_int8.tflite", Examples(to_int8(images[IMAGES]), labels[IMAGES]))


config = Experiment(
    task=task,
    data="tflite/resnet8_cifar10_int8.tflite and tfds/cifar10 (see train/data/tfds.py)",
    # The least change of the codes turns 1.5 % of the predictions, and from there on the size falls faster than agreement.
    methods=(IntegerBinAndQuant(search=micro_search(0.04), label="for TFLM"),),
)
