"""Quantized ``.tflite`` models: reading, writing, tasks and a method for their integer codes, and the JAX twin of their arithmetic.

Example::

    from bqjax.tflite import read, write
    from bqjax import bin_and_quant, decode, gaussian_bins, Rule

    model = read("model.tflite")
    codes = {name: layer["codes"] for name, layer in model.params.items()}
    binned = decode(bin_and_quant(codes, gaussian_bins(codes, 64, [Rule("*")])))
    write(model, {name: {**layer, "codes": binned[name]} for name, layer in model.params.items()}, "smaller.tflite")
"""

from bqjax.tflite.codes.search import QuantizedConfig, QuantizedInfo
from bqjax.tflite.examples import Examples, read_examples, to_int8
from bqjax.tflite.format.model import Model, parse_model, read, rewritten, write
from bqjax.tflite.method import CODES, IntegerBinAndQuant, beside
from bqjax.tflite.task import TFLiteStorage, TFLiteTask, quantized_task, tflite_task

__all__ = [
    "CODES",
    "Examples",
    "IntegerBinAndQuant",
    "Model",
    "QuantizedConfig",
    "QuantizedInfo",
    "TFLiteStorage",
    "TFLiteTask",
    "beside",
    "parse_model",
    "quantized_task",
    "read",
    "read_examples",
    "rewritten",
    "tflite_task",
    "to_int8",
    "write",
]
