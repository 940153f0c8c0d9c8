"""Visual wake words (int8 per channel, pruned) with weights that stay compressed in TensorFlow Lite Micro.

bqjax compress --config configs/tflm_vww.py --data ../shared/data --out out/tflm_vww.tflite
"""

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant
from bqjax.tflite.micro.task import micro_search, micro_task

config = Experiment(
    task=lambda data_dir, progress: micro_task(data_dir / "tflite/vww_96_int8.tflite", data_dir / "vww/vww_500.zip"),
    data="tflite/vww_96_int8.tflite and vww/vww_500.zip",
    methods=(IntegerBinAndQuant(search=micro_search(0.01), label="for TFLM"),),
)
