"""Compressed trees as files: entropy coders for codes, and one safetensors file that holds a tree.

Needs neither a model nor a neural-network library: the file says all that :func:`load` restores.
"""

from bqjax.codec.container import Deferred, inspect, load, read_leaves, save
from bqjax.codec.entropy import CODERS
from bqjax.codec.info import FileInfo, LeafInfo

__all__ = ["CODERS", "Deferred", "FileInfo", "LeafInfo", "inspect", "load", "read_leaves", "save"]
