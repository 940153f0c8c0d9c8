"""Makes trained neural networks small, in JAX, and measures what that costs.

A method turns array leaves of a parameter pytree into compressed leaves, :func:`decode` gives parameters back, and
:func:`save` writes a compressed tree to one file::

    stats, info = bqjax.search_bins(score, params, calibration_batches, key=jax.random.key(0))
    bqjax.save("model.bq.safetensors", bqjax.bin_and_quant(params, stats))
    params = bqjax.decode(bqjax.load("model.bq.safetensors"))
"""

from bqjax._version import __version__
from bqjax.codec import inspect, load, save
from bqjax.core.leaves import Affine, Clustered, bits, decode, is_compressed
from bqjax.core.rules import Rule
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.kmeans.scalar import kmeans_scalar
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins import RateConfig, SearchConfig, SearchInfo, search_bins
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import BinConfig, Bins, gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.methods.gwk.cluster import gwk_cluster
from bqjax.methods.gwk.config import GWKConfig, bits_per_weight
from bqjax.methods.gwk.training import gwk_init, gwk_update, straight_through
from bqjax.methods.rate_distortion.solver import bin_and_quant_rd
from bqjax.quantizers import QuantizerConfig, ewgs_round
from bqjax.sensitivity.curvature import output_curvature
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.importance import output_importance
from bqjax.sensitivity.lagrangian import search_lambda

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
    "bin_and_quant_ecsq",
    "bin_and_quant_rd",
    "bits",
    "bits_per_weight",
    "decode",
    "ewgs_round",
    "gaussian_bins",
    "gwk_cluster",
    "gwk_init",
    "gwk_update",
    "inspect",
    "is_compressed",
    "kmeans_scalar",
    "kmeans_share",
    "load",
    "named_leaves",
    "output_curvature",
    "output_importance",
    "save",
    "search_bins",
    "search_lambda",
    "straight_through",
]
