"""Plain safetensors weights as a flat dict of arrays, with the dtypes that NumPy itself lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from bqjax.files import atomic_write

__all__ = ["read_weights", "write_weights"]

# Names of the safetensors format -> dtype. https://huggingface.co/docs/safetensors
_DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name.

    Raises:
      ValueError: the file is missing, is not safetensors, is damaged, or has a dtype that is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    weights = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: tensor {name!r} has dtype {tensor['dtype']}, which is not supported")
        weights[name] = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return weights


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, Any], *, force: bool = False) -> None:
    """Writes arrays by name as a safetensors file, atomically.

    Raises:
      ValueError: the file exists and ``force`` is False; a dtype that safetensors cannot hold.
    """
    tensors = {}
    for name, array in weights.items():
        tensors[name] = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes 0-d arrays 1-d
        if tensors[name].dtype not in _DTYPES.values():
            raise ValueError(f"{name!r} has dtype {tensors[name].dtype}, which safetensors cannot hold")
    with atomic_write(path, force=force) as file:
        file.write(safetensors.numpy.save(tensors))
