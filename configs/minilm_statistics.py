"""Which statistic finds the weights of a sentence encoder (all-MiniLM-L6-v2) that matter? Figure 5 with J^T J and the curvature.

DATA holds text/ (STS-B) and minilm/, as configs/minilm.py says.

bqjax sweep --config configs/minilm_statistics.py --data DATA --out out/minilm_statistics --examples 100
"""

import dataclasses

from bqjax import Rule
from bqjax.experiment import StatisticsAgainstRandom, SweepConfig
from train.tasks import sts_task

# Matrices of the third and the last of the six blocks.
MATRICES = [Rule("*LayerNorm.weight", skip=True), *(Rule(f"encoder.layer.{block}.*.weight") for block in (2, 5))]

config = SweepConfig(
    # By the squared error of a line through 0, which has a gradient; ranks have none. Cosines are no classifier's logits, so
    # there is no Fisher information beside J^T J. Half the usual calibration pairs: gradients go through all of them at once.
    task=lambda data_dir, progress: dataclasses.replace(sts_task(data_dir, n_calibration=512), metric="-loss", rank_by="-loss"),
    data="text/ and minilm/ (see train/tasks/sentences.py)",
    split="test",
    figures=(StatisticsAgainstRandom(statistics=("gradient", "outputs", "curvature"), sigma=0.05, draws=8, rules=MATRICES),),
)
