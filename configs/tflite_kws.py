"""Bin & Quant on the int8 weights of keyword spotting (DS-CNN, int8 per channel), Table II of the paper.

bqjax compress --config configs/tflite_kws.py --data ../shared/data --out out/tflite_kws.bq.safetensors
bqjax compare --config configs/tflite_kws.py --data ../shared/data --out out/tflite_kws
"""

from dataclasses import replace

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant, QuantizedConfig, beside, tflite_task

METHOD = IntegerBinAndQuant(search=QuantizedConfig(max_drop=0.02, layer_drop=0.02))
config = Experiment(
    task=lambda data_dir, progress: tflite_task(data_dir / "tflite/kws_ds_cnn_int8.tflite", data_dir / "kws/kws01.npz"),
    data="tflite/kws_ds_cnn_int8.tflite and kws/kws01.npz",
    methods=(
        METHOD,
        *beside(METHOD, 0.05),
        replace(METHOD, search=replace(METHOD.search, by_output=True), label="a grid by output"),
    ),
)
