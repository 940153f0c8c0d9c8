"""Bin & Quant on the int8 weights of MobileNetV2 1.0 224 (uint8 per tensor), Table II of the paper.

bqjax compress --config configs/tflite_mobilenet_v2.py --data ../shared/data --out out/tflite_mobilenet_v2.bq.safetensors
bqjax compare --config configs/tflite_mobilenet_v2.py --data ../shared/data --out out/tflite_mobilenet_v2
"""

from dataclasses import replace

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant, QuantizedConfig, beside, tflite_task

# The least changes of codes turn more than 1 % of the predictions, of which few were right before and wrong after. The
# layers are not tried one by one: that would score the network 53 times more.
METHOD = IntegerBinAndQuant(positions=2500, search=QuantizedConfig(max_drop=0.02, by_output=True, layer_drop=None, steps=6))
config = Experiment(
    task=lambda data_dir, progress: tflite_task(
        data_dir / "tflite/mobilenet_v2_1.0_224_quant.tflite", data_dir / "imagenet_sample/imagenet_sample_224.zip"
    ),
    data="tflite/mobilenet_v2_1.0_224_quant.tflite and imagenet_sample/imagenet_sample_224.zip",
    # What each part is worth is seen by bisection alone, in half the time.
    methods=(METHOD, *beside(replace(METHOD, search=replace(METHOD.search, scan=0)))),
)
