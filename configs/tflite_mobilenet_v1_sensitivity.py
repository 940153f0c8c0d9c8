"""Figure 3 of the paper for MobileNetV1 1.0 224 (uint8 per tensor): +-3 % noise on the codes of each layer, by size.

bqjax sweep --config configs/tflite_mobilenet_v1_sensitivity.py --data ../shared/data --out out/tflite_mobilenet_v1_sensitivity
"""

from bqjax.experiment import RelativeBySize, SweepConfig
from bqjax.tflite import quantized_task

config = SweepConfig(
    task=lambda data_dir, progress: quantized_task(
        data_dir / "tflite/mobilenet_v1_1.0_224_quant.tflite", data_dir / "imagenet_sample/imagenet_sample_224.zip"
    ),
    data="tflite/mobilenet_v1_1.0_224_quant.tflite and imagenet_sample/imagenet_sample_224.zip",
    # A measurement, from which nothing is chosen.
    split="test",
    limit=100,
    figures=(RelativeBySize(magnitude=0.03, draws=2),),
)
