"""Bin & Quant on a small CNN for handwritten digits, which is trained first; what `make demo` runs.

bqjax compress --config configs/digits_bq.py --out out/demo/model.bq.safetensors --report out/demo/report.html
"""

from bqjax.experiment import ExperimentConfig
from bqjax.methods import BinAndQuant, GaussianBins, KMeans
from bqjax.search import SearchConfig
from bqjax.tree import Rule
from train.digits import digits_task

EVERYTHING = (Rule("*"),)  # biases as well

config = ExperimentConfig(
    task=lambda data_dir, progress: digits_task(progress=progress),
    method=BinAndQuant(
        search=SearchConfig(
            n_bins=3, max_bins=8, sigma_scales=(1.0, 1.5, 2.0), target_drop=0.0, target_rank_drop=0.01, tolerance=None
        ),
        rules=EVERYTHING,
    ),
    beside=(
        *(GaussianBins(bins=n, label=f"Gaussian bins, {n}") for n in (3, 4, 6, 8, 16)),
        *(KMeans(k=n, label=f"k-means, {n}") for n in (3, 4, 6, 8, 16)),
    ),
)
