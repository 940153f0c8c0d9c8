"""Figure 3 of the paper for visual wake words (int8 per channel, pruned): +-3 % noise on the codes of each layer, by size.

bqjax sweep --config configs/tflite_vww_sensitivity.py --data ../shared/data --out out/tflite_vww_sensitivity
"""

from bqjax.experiment import RelativeBySize, SweepConfig
from bqjax.tflite import quantized_task

config = SweepConfig(
    task=lambda data_dir, progress: quantized_task(data_dir / "tflite/vww_96_int8.tflite", data_dir / "vww/vww_500.zip"),
    data="tflite/vww_96_int8.tflite and vww/vww_500.zip",
    # A measurement, from which nothing is chosen.
    split="test",
    figures=(RelativeBySize(magnitude=0.03, draws=8),),
)
