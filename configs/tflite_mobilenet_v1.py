"""Bin & Quant on the int8 weights of MobileNetV1 1.0 224 (uint8 per tensor), Table II of the paper.

bqjax compress --config configs/tflite_mobilenet_v1.py --data ../shared/data --out out/tflite_mobilenet_v1.bq.safetensors
"""

from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.experiment import TFLiteConfig, beside

# A grid of 1.3 steps already turns 1.8 % of the predictions, of which few were right before and wrong after. The layers are
# not tried one by one: that would score the network 28 times more.
METHOD = QuantizedConfig(max_drop=0.03, layer_drop=None, steps=6, scan=0)
config = TFLiteConfig(
    model="tflite/mobilenet_v1_1.0_224_quant.tflite",
    examples="imagenet_sample/imagenet_sample_224.zip",
    method=METHOD,
    beside=beside(METHOD, parts=False),
)
