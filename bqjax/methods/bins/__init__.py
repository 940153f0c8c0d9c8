"""Bin search: sensitivity of every bin, the most sensitive split, layer by layer."""

from bqjax.methods.bins.config import LayerReport, SearchConfig, SearchInfo, Step
from bqjax.methods.bins.rate import RateConfig, search_lmbda
from bqjax.methods.bins.search import search_bins

__all__ = ["LayerReport", "RateConfig", "SearchConfig", "SearchInfo", "Step", "search_bins", "search_lmbda"]
