"""Bin & Quant on the int8 weights of MobileNetV2 1.0 224 (uint8 per tensor), Table II of the paper.

bqjax compress --config configs/tflite_mobilenet_v2.py --data ../shared/data --out out/tflite_mobilenet_v2.bq.safetensors
"""

from bqjax.adapters.tflite.examples import read_examples
from bqjax.quantised_search import QuantisedConfig
from bqjax.tflite_experiment import KMeansCodes, Lossless, TFLiteConfig

config = TFLiteConfig(
    model="tflite/mobilenet_v2_1.0_224_quant.tflite",
    data="tflite/mobilenet_v2_1.0_224_quant.tflite and imagenet_sample/imagenet_sample_224.zip",
    examples=lambda data_dir, source: read_examples(data_dir / "imagenet_sample/imagenet_sample_224.zip", source),
    # Trying every layer by itself would score the network 30 to 50 times more.
    method=QuantisedConfig(max_drop=0.015, layer_drop=None),
    beside={
        "B&Q at a price, 4 %": QuantisedConfig(max_drop=0.04, layer_drop=None),
        "k-means, 8 values": KMeansCodes(8),
        "lossless": Lossless(),
    },
)
