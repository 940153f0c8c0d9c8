"""Methods compared on a small CNN for handwritten digits, which is trained first; a few minutes, and no download.

bqjax compare --config configs/compare_digits.py --out out/compare_digits
"""

from bqjax.bin_and_quant import BinConfig
from bqjax.compare import CompareConfig
from bqjax.gwk import GWKConfig
from bqjax.gwk_method import GWK
from bqjax.methods import BinAndQuant, GaussianBins, KMeans
from bqjax.related.deep_compression import DeepCompressionConfig
from bqjax.related.diba import DiBAConfig
from bqjax.related.ptq import PTQConfig
from bqjax.related.residual import ResidualConfig
from bqjax.related_methods import PTQ, Binary, DeepCompression, DiBA, ResidualQuantisation
from bqjax.search import RateConfig, SearchConfig
from bqjax.tree import Rule
from train.digits import digits_task

SEARCH = SearchConfig(n_bins=8, max_bins=16, tolerance=None)
# The first convolution has 288 weights: its codebook would be as large as itself.
RULES = (Rule("conv1/*", skip=True), Rule("*/kernel"))

config = CompareConfig(
    task=lambda data_dir, progress: digits_task(progress=progress),
    methods=(
        BinAndQuant(search=SEARCH, rate=RateConfig(max_drop=0.004, max_rank_drop=0.04), label="B&Q at a price"),
        *(BinAndQuant(search=SEARCH, rate=RateConfig(price=p), label=f"B&Q at a price, {p:g}") for p in (0.02, 0.05, 0.1)),
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
        *(PTQ(config=PTQConfig(bits=b, limits="mse"), label=f"PTQ, {b} bits a channel") for b in (8, 4, 3)),
        *(
            DeepCompression(config=DeepCompressionConfig(sparsity=s, k=16), label=f"{s:.0%} pruned, 16 values")
            for s in (0.3, 0.5, 0.7)
        ),
        Binary(label="signs, a scale a channel"),
        *(
            ResidualQuantisation(config=ResidualConfig(stages=t, k=k, d=d), rules=RULES, label=f"RQ, {t} stages of {k} for {d}")
            for t, k, d in ((2, 8, 2), (2, 16, 4), (3, 16, 4))
        ),
        *(DiBA(config=DiBAConfig(bits=b), rules=RULES, label=f"DiBA, {b:g} bits") for b in (1, 2, 3)),
    ),
)
