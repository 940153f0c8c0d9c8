"""Makes trained neural networks small, in JAX, and measures what that costs.

A method turns array leaves of a parameter pytree into compressed leaves, :func:`decode` gives parameters back, and
:func:`save` writes a compressed tree to one file::

    stats, info = bqjax.search_bins(score, params, calibration_batches, key=jax.random.key(0))
    bqjax.save("model.bq.safetensors", bqjax.bin_and_quant(params, stats))
    params = bqjax.decode(bqjax.load("model.bq.safetensors"))
"""

from bqjax._version import __version__
from bqjax.bin_and_quant import BinConfig, Bins, bin_and_quant, gaussian_bins
from bqjax.codebooks import codebook_gradients, quantize_codebooks, with_codebooks
from bqjax.codec import inspect, load, save
from bqjax.gwk import gwk_cluster
from bqjax.gwk_blocks import GWKConfig, bits_per_weight
from bqjax.gwk_loop import gwk_init, gwk_update, straight_through
from bqjax.kmeans import kmeans_scalar
from bqjax.leaves import Affine, Clustered, bits, decode, is_compressed
from bqjax.quantizers import QuantizerConfig, ewgs_round, hessian_delta
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
    "GWKConfig",
    "QuantizerConfig",
    "RateConfig",
    "Rule",
    "SearchConfig",
    "SearchInfo",
    "Task",
    "__version__",
    "bin_and_quant",
    "bin_and_quant_at_price",
    "bits",
    "bits_per_weight",
    "codebook_gradients",
    "decode",
    "ewgs_round",
    "gaussian_bins",
    "gwk_cluster",
    "gwk_init",
    "gwk_update",
    "hessian_delta",
    "inspect",
    "is_compressed",
    "kmeans_scalar",
    "kmeans_share",
    "load",
    "named_leaves",
    "output_importance",
    "quantize_codebooks",
    "save",
    "search_bins",
    "search_price",
    "straight_through",
    "with_codebooks",
]
