"""Bin & Quant without retraining on the published Speech Commands network (the paper's SPC, Table I).

bqjax compress --config configs/spc_bq.py --data ../shared/data --out out/spc.bq.safetensors
"""

from bqjax.experiment.config import ExperimentConfig
from bqjax.methods.baselines.methods import KMeans
from bqjax.methods.bins import RateConfig, SearchConfig
from bqjax.methods.bins.gaussian import BinConfig
from bqjax.methods.bins.method import BinAndQuant, GaussianBins
from train.tasks.speech_commands import spc_task

SEARCH = SearchConfig(n_bins=8, max_bins=15, sigma_scales=(1.6,), tolerance=None, max_drop=0.01)

config = ExperimentConfig(
    task=lambda data_dir, progress: spc_task(data_dir),
    data="weights/spc_conv.safetensors and speech/ (see bqjax/models/spc.py)",
    method=BinAndQuant(search=SEARCH, rate=RateConfig(max_drop=0.01), label="B&Q, entropy-constrained"),
    beside=(
        *(
            BinAndQuant(search=SEARCH, rate=RateConfig(lmbda=p), label=f"B&Q, entropy-constrained, lmbda {p:g}")
            for p in (2.5e-07, 6.25e-07, 1.25e-06, 2.5e-06)
        ),
        *(
            BinAndQuant(
                search=SearchConfig(
                    n_bins=3, max_bins=10, sigma_scales=(1.4, 2.0, 2.8, 3.5), lmbda=p, tolerance=None, max_drop=None
                ),
                label=f"B&Q by sensitivity, lmbda {p:g}",
            )
            for p in (6.25e-08, 2.5e-07)
        ),
        *(GaussianBins(bins=BinConfig(n_bins=n), label=f"Gaussian bins, {n}") for n in (4, 8, 16)),
        *(GaussianBins(bins=BinConfig(n_bins=n, sigma_scale=2.0), label=f"Gaussian bins of 2 sigma, {n}") for n in (4, 8, 16)),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (4, 8, 15, 512)),
    ),
)
