"""Bin & Quant on person detection as a model is searched that has operators which the JAX twin lacks: LiteRT scores it.

bqjax compress --config configs/tflite_person_detect_litert.py --data ../shared/data --out out/person_litert.bq.safetensors
"""

from bqjax.quantised_search import QuantisedConfig
from bqjax.tflite_experiment import TFLiteConfig, beside

METHOD = QuantisedConfig(max_drop=0.02, layer_drop=0.02)
config = TFLiteConfig(
    model="tflite/person_detect.tflite",
    examples="vww/vww_500.zip",
    method=METHOD,
    beside=beside(METHOD, 0.05, parts=False),
    twin=False,
)
