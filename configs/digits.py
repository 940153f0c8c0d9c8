"""Methods on a small CNN for handwritten digits, which is trained first; some rows of it are what `make demo` shows.

bqjax compare --config configs/digits.py --out out/digits       # all rows: a few minutes, and no download
bqjax compress --config configs/digits.py --out out/digits.bq.safetensors --report out/digits.html
"""

from bqjax import Rule
from bqjax.experiment import Experiment
from bqjax.methods import (
    GWK,
    PTQ,
    BinAndQuant,
    Binary,
    BinConfig,
    DeepCompression,
    DeepCompressionConfig,
    DiBA,
    DiBAConfig,
    GaussianBins,
    GWKConfig,
    KMeans,
    PTQConfig,
    RateConfig,
    RateDistortion,
    ResidualConfig,
    ResidualQuantization,
    SearchConfig,
)
from train.tasks import digits_task

SEARCH = SearchConfig(n_bins=8, max_bins=16, tolerance=None)
# The first convolution has 288 weights: its codebook would be as large as itself.
RULES = (Rule("conv1/*", skip=True), Rule("*/kernel"))

config = Experiment(
    task=lambda data_dir, progress: digits_task(progress=progress),
    methods=(
        BinAndQuant(search=SEARCH, rate=RateConfig(max_drop=0.01, max_rank_drop=0.04), label="B&Q, entropy-constrained"),
        *(
            BinAndQuant(search=SEARCH, rate=RateConfig(lmbda=p), label=f"B&Q, entropy-constrained, lmbda {p:g}")
            for p in (2.5e-06, 6.25e-06, 1.25e-05)
        ),
        BinAndQuant(search=SEARCH, label="B&Q, 16 bins"),
        *(GaussianBins(bins=n, label=f"Gaussian bins, {n}") for n in (4, 8, 16)),
        *(GaussianBins(bins=BinConfig(n_bins=n, sigma_scale=2.0), label=f"Gaussian bins of 2 sigma, {n}") for n in (8, 16)),
        *(KMeans(k=n, label=f"k-means, {n}") for n in (4, 8, 16)),
        *(
            GWK(
                config=GWKConfig(bits=bits, cv=d, pw=d, weighting=weighting),
                rules=RULES,
                label=f"{name}, {bits} bits for {d}",
            )
            for name, weighting in (("PQ", "none"), ("GWK", "block"))
            for d, bits in ((2, 5), (2, 6), (4, 6))
        ),
        *(PTQ(config=PTQConfig(bits=b, limits="mse", scale_dtype="bfloat16"), label=f"PTQ, {b} bits a channel") for b in (8, 4, 3)),
        *(
            DeepCompression(config=DeepCompressionConfig(sparsity=s, k=16), label=f"{s:.0%} pruned, 16 values")
            for s in (0.3, 0.5, 0.7)
        ),
        Binary(label="signs, a scale a channel"),
        *(
            ResidualQuantization(config=ResidualConfig(stages=t, k=k, d=d), rules=RULES, label=f"RQ, {t} stages of {k} for {d}")
            for t, k, d in ((2, 8, 2), (2, 16, 4), (3, 16, 4))
        ),
        *(DiBA(config=DiBAConfig(bits=b), rules=RULES, label=f"DiBA, {b:g} bits") for b in (1, 2, 3)),
        *(RateDistortion(target_bytes=1000 * kb, label=f"rate-distortion, {kb} kB") for kb in (15, 10, 7)),
        RateDistortion(max_drop=0.01, label="rate-distortion, drop 1"),
    ),
)
