"""Bin & Quant on the int8 weights of MobileNetV1 1.0 224 (uint8 per tensor), Table II of the paper.

bqjax compress --config configs/tflite_mobilenet_v1.py --data ../shared/data --out out/tflite_mobilenet_v1.bq.safetensors
bqjax compare --config configs/tflite_mobilenet_v1.py --data ../shared/data --out out/tflite_mobilenet_v1
"""

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant, QuantizedConfig, beside, tflite_task

# A grid of 1.3 steps already turns 1.8 % of the predictions, of which few were right before and wrong after. The layers are
# not tried one by one: that would score the network 28 times more.
METHOD = IntegerBinAndQuant(positions=2500, search=QuantizedConfig(max_drop=0.03, by_output=True, layer_drop=None, steps=6))
config = Experiment(
    task=lambda data_dir, progress: tflite_task(
        data_dir / "tflite/mobilenet_v1_1.0_224_quant.tflite", data_dir / "imagenet_sample/imagenet_sample_224.zip"
    ),
    data="tflite/mobilenet_v1_1.0_224_quant.tflite and imagenet_sample/imagenet_sample_224.zip",
    methods=(METHOD, *beside(METHOD, parts=False)),
)
