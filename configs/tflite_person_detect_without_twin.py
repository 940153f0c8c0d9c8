"""Bin & Quant on person detection without its JAX twin, as for a model with operators that the twin lacks.

bqjax compress --config configs/tflite_person_detect_without_twin.py --data ../shared/data --out out/person.bq.safetensors
"""

from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.experiment import TFLiteConfig, beside

METHOD = QuantizedConfig(max_drop=0.02, layer_drop=0.02, scan=0)
config = TFLiteConfig(
    model="tflite/person_detect.tflite",
    examples="vww/vww_500.zip",
    method=METHOD,
    beside=beside(METHOD, 0.05, parts=False),
    twin=False,
)
