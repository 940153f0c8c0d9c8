"""The paper's sensitivity figures (2, 3 and 5) for a small CNN for handwritten digits, which is trained first; seconds.

bqjax sweep --config configs/digits_sensitivity.py --out out/digits_sensitivity
"""

from bqjax.experiment import BinsByLayer, NoiseByLayer, RandomAgainstGradient, RelativeBySize, StatisticsAgainstRandom, SweepConfig
from train.tasks import digits_task

config = SweepConfig(
    task=lambda data_dir, progress: digits_task(progress=progress),
    # Measurements, from which nothing is chosen: on the 600 test images. Gradients see the calibration images only.
    split="test",
    figures=(
        NoiseByLayer(levels=(0.1, 0.2, 0.4, 0.8)),
        BinsByLayer(n_bins=8, magnitude=0.5),
        RelativeBySize(magnitude=0.03),
        RandomAgainstGradient(sigma=0.05, draws=32),
        StatisticsAgainstRandom(sigma=0.05, draws=32),
    ),
)
