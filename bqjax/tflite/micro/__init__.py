"""Files for TensorFlow Lite Micro whose weights stay compressed: the operator DECODE, written and read without TFLM."""

from bqjax.tflite.micro.c_source import c_array
from bqjax.tflite.micro.choice import Limits
from bqjax.tflite.micro.file import MicroFile, is_micro, micro_content, parse_micro, plain_twin, read_micro

__all__ = ["Limits", "MicroFile", "c_array", "is_micro", "micro_content", "parse_micro", "plain_twin", "read_micro"]
