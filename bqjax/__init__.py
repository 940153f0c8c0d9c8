"""Makes trained neural networks small, in JAX, and measures what that costs.

A method turns array leaves of a parameter pytree into compressed leaves, :func:`decode` gives parameters back, and
:func:`save` writes a compressed tree to one file::

    stats, info = bqjax.search_bins(score, params, calibration_batches, key=jax.random.key(0))
    bqjax.save("model.bq.safetensors", bqjax.bin_and_quant(params, stats))
    params = bqjax.decode(bqjax.load("model.bq.safetensors"))
"""

from bqjax._version import __version__
from bqjax.bin_and_quant import BinConfig, Bins, bin_and_quant, gaussian_bins
from bqjax.codec import inspect, load, save
from bqjax.kmeans import kmeans_scalar
from bqjax.leaves import Affine, Clustered, bits, decode, is_compressed
from bqjax.rate import bin_and_quant_at_price
from bqjax.related.weight_sharing import kmeans_share
from bqjax.search import RateConfig, SearchConfig, SearchInfo, search_bins, search_price
from bqjax.sensitivity.evaluate import Evaluator
from bqjax.sensitivity.importance import output_importance
from bqjax.task import Task
from bqjax.tree import Rule, named_leaves

__all__ = [
    "Affine",
    "BinConfig",
    "Bins",
    "Clustered",
    "Evaluator",
    "RateConfig",
    "Rule",
    "SearchConfig",
    "SearchInfo",
    "Task",
    "__version__",
    "bin_and_quant",
    "bin_and_quant_at_price",
    "bits",
    "decode",
    "gaussian_bins",
    "inspect",
    "is_compressed",
    "kmeans_scalar",
    "kmeans_share",
    "load",
    "named_leaves",
    "output_importance",
    "save",
    "search_bins",
    "search_price",
]
