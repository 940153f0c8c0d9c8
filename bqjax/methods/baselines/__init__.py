"""Methods of other papers, in the same words: the baselines that the library's own methods are measured against."""

from bqjax.methods.baselines.deep_compression import DeepCompressionConfig, deep_compress, share_nonzero, shared_gradients
from bqjax.methods.baselines.diba import DiBAConfig, diba_factorize
from bqjax.methods.baselines.dkm import DKMConfig, dkm_forward, dkm_harden, dkm_start
from bqjax.methods.baselines.even import EvenConfig, even_levels
from bqjax.methods.baselines.methods import (
    PTQ,
    Binary,
    DataFree,
    DeepCompression,
    DiBA,
    EvenLevels,
    KMeans,
    ProductQuantization,
    ResidualQuantization,
)
from bqjax.methods.baselines.product import ProductConfig, binarize, product_quantize
from bqjax.methods.baselines.pruning import GradualPruning, gradual_pruning, magnitude_masks, prune
from bqjax.methods.baselines.ptq import PTQConfig, correct_biases, quantize
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share, search_k

__all__ = [
    "PTQ",
    "Binary",
    "DKMConfig",
    "DataFree",
    "DeepCompression",
    "DeepCompressionConfig",
    "DiBA",
    "DiBAConfig",
    "EvenConfig",
    "EvenLevels",
    "GradualPruning",
    "KMeans",
    "PTQConfig",
    "ProductConfig",
    "ProductQuantization",
    "ResidualConfig",
    "ResidualQuantization",
    "binarize",
    "correct_biases",
    "deep_compress",
    "diba_factorize",
    "dkm_forward",
    "dkm_harden",
    "dkm_start",
    "even_levels",
    "gradual_pruning",
    "kmeans_share",
    "magnitude_masks",
    "product_quantize",
    "prune",
    "quantize",
    "residual_quantize",
    "search_k",
    "share_nonzero",
    "shared_gradients",
]
