"""The ``.tflite`` flatbuffer as plain data: checked, read, and written again with other weights."""

from bqjax.tflite.format.checks import verify
from bqjax.tflite.format.graph import Graph, Operator, Tensor, parse
from bqjax.tflite.format.model import Model, parse_model, read, rewritten, write

__all__ = ["Graph", "Model", "Operator", "Tensor", "parse", "parse_model", "read", "rewritten", "verify", "write"]
