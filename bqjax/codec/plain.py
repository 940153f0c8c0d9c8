"""Uncompressed parameters as one file, and what a general compressor makes of it: the sizes that ratios are taken against."""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from safetensors.numpy import save as safetensors_bytes

from bqjax.core.tree import named_leaves

__all__ = ["float_file", "zstd_bytes"]


def float_file(params: Any) -> bytes:
    """Parameters as the bytes of a safetensors file, the size that ratios are taken against."""
    return safetensors_bytes({name: np.array(leaf, order="C") for name, leaf in named_leaves(params).items()})


def zstd_bytes(data: bytes, level: int = 19) -> int:
    """Size of ``data`` after zstd at ``level``, the lossless baseline."""
    return len(zstandard.ZstdCompressor(level=level).compress(data))
