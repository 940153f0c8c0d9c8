"""Bin & Quant on a small CNN for handwritten digits, which is trained first; what `make demo` runs.

bqjax compress --config configs/digits_bq.py --out out/demo/model.bq.safetensors --report out/demo/report.html
"""

from bqjax.experiment.config import ExperimentConfig
from bqjax.methods.baselines.methods import KMeans
from bqjax.methods.bins import RateConfig, SearchConfig
from bqjax.methods.bins.method import BinAndQuant, GaussianBins
from train.tasks.digits import digits_task

SEARCH = SearchConfig(n_bins=8, max_bins=16, tolerance=None)

config = ExperimentConfig(
    task=lambda data_dir, progress: digits_task(progress=progress),
    method=BinAndQuant(
        search=SEARCH,
        rate=RateConfig(max_drop=0.004, max_rank_drop=0.04),
        label="B&Q, entropy-constrained",
    ),
    beside=(
        BinAndQuant(search=SEARCH, label="B&Q, 16 bins"),
        *(GaussianBins(bins=n, label=f"Gaussian bins, {n}") for n in (4, 8, 16)),
        *(KMeans(k=n, label=f"k-means, {n}") for n in (8, 16)),
    ),
)
