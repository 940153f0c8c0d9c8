"""Bin search: sensitivity of every bin, the most sensitive split, layer by layer."""

from bqjax.search.config import LayerReport, SearchConfig, SearchInfo, Step
from bqjax.search.run import search_bins

__all__ = ["LayerReport", "SearchConfig", "SearchInfo", "Step", "search_bins"]
