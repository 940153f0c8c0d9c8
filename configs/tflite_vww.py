"""Bin & Quant on the int8 weights of visual wake words (int8 per channel, pruned), Table II of the paper.

bqjax compress --config configs/tflite_vww.py --data ../shared/data --out out/tflite_vww.bq.safetensors
bqjax compare --config configs/tflite_vww.py --data ../shared/data --out out/tflite_vww
"""

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant, QuantizedConfig, beside, tflite_task

METHOD = IntegerBinAndQuant(search=QuantizedConfig(max_drop=0.02, layer_drop=0.02))
config = Experiment(
    task=lambda data_dir, progress: tflite_task(data_dir / "tflite/vww_96_int8.tflite", data_dir / "vww/vww_500.zip"),
    data="tflite/vww_96_int8.tflite and vww/vww_500.zip",
    methods=(METHOD, *beside(METHOD, 0.05)),
)
