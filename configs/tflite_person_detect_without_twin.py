"""Bin & Quant on person detection without its JAX twin, as for a model with operators that the twin lacks.

bqjax compress --config configs/tflite_person_detect_without_twin.py --data ../shared/data --out out/person.bq.safetensors
bqjax compare --config configs/tflite_person_detect_without_twin.py --data ../shared/data --out out/person
"""

from bqjax.experiment import Experiment
from bqjax.tflite import IntegerBinAndQuant, QuantizedConfig, beside, tflite_task

METHOD = IntegerBinAndQuant(search=QuantizedConfig(max_drop=0.02, layer_drop=0.02))
config = Experiment(
    task=lambda data_dir, progress: tflite_task(data_dir / "tflite/person_detect.tflite", data_dir / "vww/vww_500.zip", twin=False),
    data="tflite/person_detect.tflite and vww/vww_500.zip",
    methods=(METHOD, *beside(METHOD, 0.05, parts=False)),
)
