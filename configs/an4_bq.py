"""Bin & Quant without retraining on a DeepSpeech 2 that configs/deepspeech2_an4.py has trained: one file of compare_an4.py's rows.

bqjax compress --config configs/an4_bq.py --data ../shared/data --out out/an4.bq.safetensors --table out/an4.md
"""

from pathlib import Path

from bqjax.experiment.config import CompareConfig, ExperimentConfig, load_config
from bqjax.methods.baselines.methods import KMeans

base = load_config(Path(__file__).parent / "compare_an4.py", CompareConfig)

# The lmbda is the highest that costs at most half a point of the calibration utterances' word error rate.
config = ExperimentConfig(
    task=base.task, data=base.data, method=base.methods[0], beside=(KMeans(k=16, label="k-means, 16"),), budget=base.budget
)
