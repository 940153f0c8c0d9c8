"""Keyword spotting (DS-CNN, int8 per channel) with weights that stay compressed in TensorFlow Lite Micro.

bqjax compress --config configs/tflm_kws.py --data ../shared/data --out out/tflm_kws.tflite
"""

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant
from bqjax.tflite.micro.task import micro_search, micro_task

config = Experiment(
    task=lambda data_dir, progress: micro_task(data_dir / "tflite/kws_ds_cnn_int8.tflite", data_dir / "kws/kws01.npz"),
    data="tflite/kws_ds_cnn_int8.tflite and kws/kws01.npz",
    methods=(IntegerBinAndQuant(search=micro_search(0.01), label="for TFLM"),),
)
