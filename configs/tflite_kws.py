"""Bin & Quant on the int8 weights of keyword spotting (DS-CNN, int8 per channel), Table II of the paper.

bqjax compress --config configs/tflite_kws.py --data ../shared/data --out out/tflite_kws.bq.safetensors
"""

from dataclasses import replace

from bqjax.tflite.codes.search import QuantizedConfig
from bqjax.tflite.experiment import TFLiteConfig, beside

METHOD = QuantizedConfig(max_drop=0.02, layer_drop=0.02, scan=0)
config = TFLiteConfig(
    model="tflite/kws_ds_cnn_int8.tflite",
    examples="kws/kws01.npz",
    method=METHOD,
    beside={**beside(METHOD, 0.05), "a grid by output": replace(METHOD, by_output=True)},
)
