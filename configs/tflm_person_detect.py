"""Person detection (int8 per channel) with weights that stay compressed in TensorFlow Lite Micro.

bqjax compress --config configs/tflm_person_detect.py --data ../shared/data --out out/tflm_person_detect.tflite
"""

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant
from bqjax.tflite.micro.task import micro_search, micro_task

config = Experiment(
    task=lambda data_dir, progress: micro_task(data_dir / "tflite/person_detect.tflite", data_dir / "vww/vww_500.zip"),
    data="tflite/person_detect.tflite and vww/vww_500.zip",
    methods=(IntegerBinAndQuant(search=micro_search(0.01), label="for TFLM"),),
)
