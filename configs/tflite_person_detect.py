"""Bin & Quant on the int8 weights of person detection (int8 per channel), Table II of the paper.

bqjax compress --config configs/tflite_person_detect.py --data ../shared/data --out out/tflite_person_detect.bq.safetensors
"""

from bqjax.adapters.tflite.examples import read_examples
from bqjax.quantised_search import QuantisedConfig
from bqjax.tflite_experiment import KMeansCodes, Lossless, TFLiteConfig

config = TFLiteConfig(
    model="tflite/person_detect.tflite",
    data="tflite/person_detect.tflite and vww/vww_500.zip",
    examples=lambda data_dir, source: read_examples(data_dir / "vww/vww_500.zip", source),
    method=QuantisedConfig(max_drop=0.02, layer_drop=0.02),
    beside={
        "B&Q at a price, 5 %": QuantisedConfig(max_drop=0.05, layer_drop=0.02),
        "no error compensation": QuantisedConfig(max_drop=0.02, layer_drop=0.02, compensate=False),
        "no bias correction": QuantisedConfig(max_drop=0.02, layer_drop=0.02, correct_bias=False),
        "k-means, 8 values": KMeansCodes(8),
        "lossless": Lossless(),
    },
)
