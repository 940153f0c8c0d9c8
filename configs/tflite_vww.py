"""Bin & Quant on the int8 weights of visual wake words (int8 per channel, pruned), Table II of the paper.

bqjax compress --config configs/tflite_vww.py --data ../shared/data --out out/tflite_vww.bq.safetensors
"""

from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.experiment import TFLiteConfig, beside

METHOD = QuantizedConfig(max_drop=0.02, layer_drop=0.02, scan=0)
config = TFLiteConfig(
    model="tflite/vww_96_int8.tflite",
    examples="vww/vww_500.zip",
    method=METHOD,
    beside=beside(METHOD, 0.05),
)
