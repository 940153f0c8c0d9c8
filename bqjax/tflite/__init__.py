"""Quantized ``.tflite`` models: reading, writing, and the JAX twin of their integer arithmetic.

Example::

    from bqjax import bin_and_quant, gaussian_bins
    from bqjax.adapters import tflite
    from bqjax.core.leaves import decode
    from bqjax.core.tree import Rule

    model = tflite.read("model.tflite")
    codes = {name: layer["codes"] for name, layer in model.params.items()}
    binned = decode(bin_and_quant(codes, gaussian_bins(codes, 64, [Rule("*")])))
    tflite.write(model, {name: {**layer, "codes": binned[name]} for name, layer in model.params.items()}, "smaller.tflite")
"""

from bqjax.tflite.format.model import Model, parse_model, read, rewritten, write

__all__ = ["Model", "parse_model", "read", "rewritten", "write"]
