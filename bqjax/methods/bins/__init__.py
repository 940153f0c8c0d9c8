"""Bin & Quant, scalar quantization by bins: Gaussian or searched by the network's sensitivity, plain or entropy-constrained."""

from bqjax.methods.bins.config import LayerReport, SearchConfig, SearchInfo, Step
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import BinConfig, Bins, BinStats, gaussian_bins
from bqjax.methods.bins.method import BinAndQuant, GaussianBins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.methods.bins.rate import RateConfig
from bqjax.methods.bins.search import search_bins

__all__ = [
    "BinAndQuant",
    "BinConfig",
    "BinStats",
    "Bins",
    "GaussianBins",
    "LayerReport",
    "RateConfig",
    "SearchConfig",
    "SearchInfo",
    "Step",
    "bin_and_quant",
    "bin_and_quant_ecsq",
    "gaussian_bins",
    "search_bins",
]
