"""Integer codes of quantised layers, chosen by curvature with error feedback and by the bits that their file takes."""

from bqjax.tflite.codes.search import QuantisedConfig, QuantisedInfo, QuantisedNetwork, measure_layers, search_codes

__all__ = ["QuantisedConfig", "QuantisedInfo", "QuantisedNetwork", "measure_layers", "search_codes"]
