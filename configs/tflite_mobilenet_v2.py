"""Bin & Quant on the int8 weights of MobileNetV2 1.0 224 (uint8 per tensor), Table II of the paper.

bqjax compress --config configs/tflite_mobilenet_v2.py --data ../shared/data --out out/tflite_mobilenet_v2.bq.safetensors
"""

from dataclasses import replace

from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.experiment import TFLiteConfig, beside

# The least changes of codes turn more than 1 % of the predictions, of which few were right before and wrong after. The
# layers are not tried one by one: that would score the network 53 times more.
METHOD = QuantizedConfig(max_drop=0.02, layer_drop=None, steps=6)
config = TFLiteConfig(
    model="tflite/mobilenet_v2_1.0_224_quant.tflite",
    examples="imagenet_sample/imagenet_sample_224.zip",
    method=METHOD,
    # What each part is worth is seen by bisection alone, in half the time.
    beside=beside(replace(METHOD, scan=0)),
)
