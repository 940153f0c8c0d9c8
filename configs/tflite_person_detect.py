"""Bin & Quant on the int8 weights of person detection (int8 per channel), Table II of the paper.

bqjax compress --config configs/tflite_person_detect.py --data ../shared/data --out out/tflite_person_detect.bq.safetensors
bqjax compare --config configs/tflite_person_detect.py --data ../shared/data --out out/tflite_person_detect
"""

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant, QuantizedConfig, beside, tflite_task

METHOD = IntegerBinAndQuant(search=QuantizedConfig(max_drop=0.02, layer_drop=0.02))
config = Experiment(
    task=lambda data_dir, progress: tflite_task(data_dir / "tflite/person_detect.tflite", data_dir / "vww/vww_500.zip"),
    data="tflite/person_detect.tflite and vww/vww_500.zip",
    methods=(METHOD, *beside(METHOD, 0.05)),
)
