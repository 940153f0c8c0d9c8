"""Figure 3 of the paper for keyword spotting (DS-CNN, int8 per channel): +-3 % noise on the codes of each layer, by size.

bqjax sweep --config configs/tflite_kws_sensitivity.py --data ../shared/data --out out/tflite_kws_sensitivity
"""

from bqjax.experiment import RelativeBySize, SweepConfig
from bqjax.tflite import quantized_task

config = SweepConfig(
    task=lambda data_dir, progress: quantized_task(data_dir / "tflite/kws_ds_cnn_int8.tflite", data_dir / "kws/kws01.npz"),
    data="tflite/kws_ds_cnn_int8.tflite and kws/kws01.npz",
    # A measurement, from which nothing is chosen.
    split="test",
    figures=(RelativeBySize(magnitude=0.03, draws=8),),
)
