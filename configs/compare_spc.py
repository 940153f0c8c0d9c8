"""Methods compared without retraining on the published Speech Commands network (the paper's SPC, Table I).

bqjax compare --config configs/compare_spc.py --data DATA --out out/compare_spc
"""

from bqjax.core.rules import Rule
from bqjax.experiment.config import CompareConfig
from bqjax.methods.baselines.methods import KMeans
from bqjax.methods.bins import RateConfig, SearchConfig
from bqjax.methods.bins.gaussian import BinConfig
from bqjax.methods.bins.method import BinAndQuant, GaussianBins
from bqjax.methods.budget.plan import BudgetConfig
from bqjax.methods.gwk.cluster import GWKConfig
from bqjax.methods.gwk.method import GWK
from train.tasks.speech_commands import spc_task

SEARCH = SearchConfig(n_bins=8, max_bins=15, sigma_scales=(1.6,), tolerance=None, max_drop=0.01)
# The first convolution has few inputs and few weights.
RULES = (Rule("conv1/kernel", GWKConfig(bits=6, cv=2, weighting="none")), Rule("*/kernel"))

config = CompareConfig(
    task=lambda data_dir, progress: spc_task(data_dir),
    data="weights/spc_conv.safetensors and speech/ (see bqjax/models/spc.py)",
    methods=(
        BinAndQuant(search=SEARCH, rate=RateConfig(max_drop=0.01), label="B&Q, entropy-constrained"),
        *(
            BinAndQuant(search=SEARCH, rate=RateConfig(lmbda=p), label=f"B&Q, entropy-constrained, lmbda {p:g}")
            for p in (2.5e-07, 6.25e-07, 1.25e-06, 2.5e-06)
        ),
        *(GaussianBins(bins=BinConfig(n_bins=n), label=f"Gaussian bins, {n}") for n in (4, 8, 16)),
        *(GaussianBins(bins=BinConfig(n_bins=n, sigma_scale=2.0), label=f"Gaussian bins of 2 sigma, {n}") for n in (4, 8, 16)),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (2, 4, 8, 16)),
        *(
            GWK(
                config=GWKConfig(bits=bits, cv=d, pw=d, weighting=weighting),
                rules=RULES,
                label=f"{name}, {bits} bits for {d}",
            )
            for name, weighting in (("PQ", "none"), ("GWK", "block"))
            for d, bits in ((2, 4), (4, 5), (4, 8), (8, 8))
        ),
    ),
    budget=BudgetConfig(refine=1),
)
