"""Integer codes of quantized layers, chosen by curvature with error feedback and by the bits that their file takes."""

from bqjax.tflite.codes.search import QuantizedConfig, QuantizedInfo, QuantizedNetwork, measure_layers, search_codes

__all__ = ["QuantizedConfig", "QuantizedInfo", "QuantizedNetwork", "measure_layers", "search_codes"]
