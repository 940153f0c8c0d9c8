"""Bin search: sensitivity of every bin, the most sensitive split, layer by layer."""

from bqjax.search.config import LayerReport, SearchConfig, SearchInfo, Step
from bqjax.search.price import RateConfig, search_price
from bqjax.search.run import search_bins

__all__ = ["LayerReport", "RateConfig", "SearchConfig", "SearchInfo", "Step", "search_bins", "search_price"]
