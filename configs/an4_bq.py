"""Bin & Quant without retraining on a DeepSpeech 2 that configs/deepspeech2_an4.py has trained (the paper's DS 2, Table I).

bqjax compress --config configs/an4_bq.py --data ../shared/data --out out/an4.bq.safetensors --table out/an4.md
"""

from bqjax.experiment import ExperimentConfig
from bqjax.methods import BinAndQuant, GaussianBins, KMeans
from bqjax.search import RateConfig, SearchConfig
from bqjax.tree import Rule
from train.speech_task import an4_task

PRICES = 0.0005, 0.001, 0.002, 0.005
RUN = "out/deepspeech2_an4"
SEARCH = SearchConfig(n_bins=8, max_bins=15, sigma_scales=(1.6,), tolerance=None, max_drop=0.01)
AT_MOST = RateConfig(max_drop=0.005)  # of the error rate of the calibration utterances
# The paper's parameter sharing: one codebook for all kernels of the recurrent layers.
SHARED = (Rule("rnn/*/kernel", group="rnn"), Rule("*/kernel"))
# The paper's second setting: 3 bits for one recurrent layer, 4 for the others.
THREE_BITS_FOR_ONE = (Rule("rnn/2/*/kernel", 8, group="last"), Rule("rnn/*/kernel", 16, group="rnn"), Rule("*/kernel", 16))

config = ExperimentConfig(
    task=lambda data_dir, progress: an4_task(RUN, data_dir),
    data=f"an4/ (and {RUN} must be there: train it first)",
    method=BinAndQuant(search=SEARCH, rate=AT_MOST, label="B&Q at a price"),
    beside=(
        BinAndQuant(search=SEARCH, rate=AT_MOST, rules=SHARED, label="B&Q at a price, shared bins"),
        *(BinAndQuant(search=SEARCH, rate=RateConfig(price=p), label=f"B&Q at a price, {p:g}") for p in PRICES),
        BinAndQuant(search=SEARCH, label="B&Q by sensitivity"),
        BinAndQuant(search=SEARCH, rules=SHARED, label="B&Q by sensitivity, shared bins"),
        *(GaussianBins(bins=n, label=f"Gaussian bins, {n}") for n in (8, 16)),
        *(GaussianBins(bins=n, rules=SHARED, label=f"Gaussian bins, {n}, shared bins") for n in (8, 16)),
        GaussianBins(rules=THREE_BITS_FOR_ONE, label="Gaussian bins, shared, 8 for the last recurrent layer, else 16"),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (8, 16, 512)),
    ),
)
