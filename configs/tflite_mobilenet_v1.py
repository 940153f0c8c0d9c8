"""Bin & Quant on the int8 weights of MobileNetV1 1.0 224 (uint8 per tensor), Table II of the paper.

bqjax compress --config configs/tflite_mobilenet_v1.py --data ../shared/data --out out/tflite_mobilenet_v1.bq.safetensors
"""

from bqjax.quantised_search import QuantisedConfig
from bqjax.tflite_experiment import TFLiteConfig, beside

# 500 images disagree by chance on what was compressed for 500 others: less is asked for than may be lost.
# The layers are not tried one by one: that would score the network 28 times more.
METHOD = QuantisedConfig(max_drop=0.008, layer_drop=None)
config = TFLiteConfig(
    model="tflite/mobilenet_v1_1.0_224_quant.tflite",
    examples="imagenet_sample/imagenet_sample_224.zip",
    method=METHOD,
    beside=beside(METHOD, parts=False),
)
