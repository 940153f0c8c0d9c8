"""Figure 3 of the paper for person detection (int8 per channel): +-3 % noise on the codes of each layer, by size.

bqjax sweep --config configs/tflite_person_detect_sensitivity.py --data ../shared/data --out out/tflite_person_detect_sensitivity
"""

from bqjax.experiment import RelativeBySize, SweepConfig
from bqjax.tflite import quantized_task

config = SweepConfig(
    task=lambda data_dir, progress: quantized_task(data_dir / "tflite/person_detect.tflite", data_dir / "vww/vww_500.zip"),
    data="tflite/person_detect.tflite and vww/vww_500.zip",
    # A measurement, from which nothing is chosen.
    split="test",
    figures=(RelativeBySize(magnitude=0.03, draws=8),),
)
