"""The paper's sensitivity figures (2 and 3) for a DeepSpeech 2 that configs/deepspeech2_an4.py has trained: WER by kind of layer.

bqjax sweep --config configs/an4_sensitivity.py --data ../shared/data --out out/an4_sensitivity
"""

from bqjax.experiment import BinsByLayer, NoiseByLayer, RelativeBySize, SweepConfig
from train.tasks import an4_task

config = SweepConfig(
    task=lambda data_dir, progress: an4_task("out/deepspeech2_an4", data_dir),
    data="an4/ (and out/deepspeech2_an4 must be there: train it first)",
    split="test",  # a measurement, from which nothing is chosen
    figures=(
        NoiseByLayer(levels=(0.2, 0.4, 0.8), draws=4),
        BinsByLayer(n_bins=8, magnitude=0.5, draws=2),
        RelativeBySize(magnitude=0.03, draws=4),
    ),
)
