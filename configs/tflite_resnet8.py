"""Bin & Quant on the int8 weights of ResNet-8 for CIFAR-10 (int8 per channel), Table II of the paper.

bqjax compress --config configs/tflite_resnet8.py --data ../shared/data --out out/tflite_resnet8.bq.safetensors
bqjax compare --config configs/tflite_resnet8.py --data ../shared/data --out out/tflite_resnet8
"""

from bqjax.experiment import Experiment
from bqjax.tflite import Examples, IntegerBinAndQuant, QuantizedConfig, beside, tflite_task, to_int8
from train.data.tfds import cifar10

N_IMAGES = 2000
# The least change of the codes turns 1.5 % of the predictions, a grid of 8 steps 3.6 %: a lower limit keeps all codes.
METHOD = IntegerBinAndQuant(search=QuantizedConfig(max_drop=0.03, layer_drop=0.03))


def task(data_dir, progress):
    """The first test images."""
    images, labels = cifar10(data_dir, "test")
    return tflite_task(data_dir / "tflite/resnet8_cifar10_int8.tflite", Examples(to_int8(images[:N_IMAGES]), labels[:N_IMAGES]))


config = Experiment(
    task=task,
    data="tflite/resnet8_cifar10_int8.tflite and tfds/cifar10 (see train/data/tfds.py)",
    methods=(METHOD, *beside(METHOD, 0.05)),
)
