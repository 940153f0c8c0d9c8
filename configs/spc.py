"""Methods without retraining on the published Speech Commands network (the paper's SPC, Table I).

bqjax compress --config configs/spc.py --data DATA --out out/spc.bq.safetensors --report out/spc.html
bqjax compare --config configs/spc.py --data DATA --out out/spc
bqjax compress --config configs/spc.py --data DATA --max-drop 1.0 --plan --out out/spc_planned.bq.safetensors
"""

from bqjax import Rule
from bqjax.experiment import Experiment
from bqjax.methods import (
    GWK,
    BinAndQuant,
    BinConfig,
    BudgetConfig,
    EvenConfig,
    EvenLevels,
    GaussianBins,
    GWKConfig,
    KMeans,
    RateConfig,
    RateDistortion,
    SearchConfig,
)
from train.tasks import spc_task

SEARCH = SearchConfig(n_bins=8, max_bins=15, sigma_scales=(1.6,), tolerance=None, max_drop=0.01)
# The first convolution has few inputs and few weights.
RULES = (Rule("conv1/kernel", GWKConfig(bits=6, cv=2, weighting="none")), Rule("*/kernel"))

config = Experiment(
    task=lambda data_dir, progress: spc_task(data_dir),
    data="weights/spc_conv.safetensors and speech/ (see bqjax/models/spc.py)",
    methods=(
        BinAndQuant(search=SEARCH, rate=RateConfig(max_drop=0.01), label="B&Q, entropy-constrained"),
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
        *(KMeans(k=k, label=f"k-means, {k}") for k in (2, 4, 8, 15, 16, 512)),
        *(EvenLevels(config=EvenConfig(rtol=e), label=f"even levels, {100 * e:g} %") for e in (0.05, 0.1)),
        *(
            GWK(
                config=GWKConfig(bits=bits, cv=d, pw=d, weighting=weighting),
                rules=RULES,
                label=f"{name}, {bits} bits for {d}",
            )
            for name, weighting in (("PQ", "none"), ("GWK", "block"))
            for d, bits in ((2, 4), (4, 5), (4, 8), (8, 8))
        ),
        *(RateDistortion(lmbda=p, max_width=256, label=f"rate-distortion, lmbda {p:g}") for p in (2.5e-07, 5e-07, 1e-06)),
        RateDistortion(max_drop=0.01, max_width=256, label="rate-distortion, drop 1"),
        # Blocks as wide as there are clips, the default, which asks no test clip.
        *(RateDistortion(lmbda=p, label=f"rate-distortion, blocks of 320, lmbda {p:g}") for p in (5e-07, 1e-06)),
        RateDistortion(max_drop=0.01, label="rate-distortion, blocks of 320, drop 1"),
    ),
    budget=BudgetConfig(refine=1),
)
