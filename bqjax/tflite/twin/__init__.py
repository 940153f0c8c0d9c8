"""The JAX twin of a quantized ``.tflite`` graph: its integers bit for bit, and its real numbers for gradients."""

from bqjax.tflite.twin.graph import Twin, build, unsupported

__all__ = ["Twin", "build", "unsupported"]
