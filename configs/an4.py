"""Methods without retraining on a DeepSpeech 2 that configs/deepspeech2_an4.py has trained (the paper's DS 2, Table I).

bqjax compress --config configs/an4.py --data DATA --out out/an4.bq.safetensors --table out/an4.md
bqjax compare --config configs/an4.py --data DATA --out out/an4
"""

from bqjax import Rule
from bqjax.experiment import Experiment
from bqjax.methods import (
    BinAndQuant,
    BinConfig,
    BudgetConfig,
    GaussianBins,
    KMeans,
    RateConfig,
    RateDistortion,
    SearchConfig,
    WithinBudget,
)
from train.tasks import an4_task

RUN = "out/deepspeech2_an4"
LMBDAS = 1.5e-05, 3.125e-05, 6.25e-05, 0.000125
SEARCH = SearchConfig(n_bins=8, max_bins=15, sigma_scales=(1.6,), tolerance=None, max_drop=0.01)
WIDE = BinConfig(n_bins=16, sigma_scale=2.0)
BUDGET = BudgetConfig(blocks=((2, 6),), exponents=(-7.0, -5.0, -3.0), refine=0)
# The paper's parameter sharing: one codebook for all kernels of the recurrent layers.
SHARED = (Rule("rnn/*/kernel", group="rnn"), Rule("*/kernel"))
# The paper's second setting: 3 bits for one recurrent layer, 4 for the others.
THREE_BITS_FOR_ONE = (Rule("rnn/2/*/kernel", 8, group="last"), Rule("rnn/*/kernel", 16, group="rnn"), Rule("*/kernel", 16))

config = Experiment(
    task=lambda data_dir, progress: an4_task(RUN, data_dir),
    data=f"an4/ (and {RUN} must be there: train it first)",
    methods=(
        # The lmbda is the highest that costs at most so much of the calibration utterances' word error rate.
        *(
            GaussianBins(
                bins=WIDE, rate=RateConfig(max_drop=points / 100), label=f"B&Q, entropy-constrained, at most {points:g} points"
            )
            for points in (0.5, 1.0)
        ),
        *(GaussianBins(bins=WIDE, rate=RateConfig(lmbda=p), label=f"B&Q, entropy-constrained, lmbda {p:g}") for p in LMBDAS),
        *(
            GaussianBins(
                bins=WIDE, rate=RateConfig(lmbda=p), rules=SHARED, label=f"B&Q, entropy-constrained, lmbda {p:g}, shared bins"
            )
            for p in LMBDAS
        ),
        *(GaussianBins(bins=n, label=f"Gaussian bins, {n}") for n in (8, 16)),
        *(GaussianBins(bins=n, rules=SHARED, label=f"Gaussian bins, {n}, shared bins") for n in (8, 16)),
        GaussianBins(rules=THREE_BITS_FOR_ONE, label="Gaussian bins, shared, 8 for the last recurrent layer, else 16"),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (4, 8, 16, 512)),
        BinAndQuant(search=SEARCH, label="B&Q by sensitivity"),
        BinAndQuant(search=SEARCH, rules=SHARED, label="B&Q by sensitivity, shared bins"),
        *(WithinBudget(target_bytes=1000 * kb, budget=BUDGET, label=f"planned, {kb} kB") for kb in (850, 700)),
        *(RateDistortion(target_bytes=1000 * kb, label=f"rate-distortion, {kb} kB") for kb in (850, 700, 550, 500)),
        RateDistortion(max_drop=0.005, label="rate-distortion, drop 0.5"),
    ),
    budget=BUDGET,
)
