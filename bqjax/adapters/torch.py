"""Weights in PyTorch's names and layouts, put into Flax NNX models whose layers have the same names.

PyTorch itself is not needed: a state dict of NumPy arrays is (``bqjax.adapters.safetensors.read_weights`` reads one from a
safetensors file). A variable ``layer1/0/conv1/kernel`` takes its values from the tensor ``layer1.0.conv1.weight``:

    ==========  ================  ===============================================
    variable    tensor            layout
    ==========  ================  ===============================================
    kernel      weight            convolutions ``[out, in, ...] -> [..., in, out]``,
                                  dense layers ``[out, in] -> [in, out]``
    embedding   weight            as it is, ``[tokens, width]``
    scale       weight            as it is
    bias        bias              as it is
    mean        running_mean      as it is
    var         running_var       as it is
    ==========  ================  ===============================================

``num_batches_tracked``, PyTorch's count of BatchNorm's training steps, has no counterpart and is left out. Transposed
convolutions and recurrent layers have other layouts and are not covered. A dense layer that follows a
flattened image keeps PyTorch's order of inputs (channels first), so the model must flatten in that order as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from bqjax.adapters.flax.load import nnx_load

__all__ = ["load_torch", "torch_ignored", "torch_name", "torch_to_nnx_layout"]

_TENSORS = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_IGNORED = "num_batches_tracked"


def torch_name(name: str) -> str:
    """PyTorch's name of an NNX variable.

    Raises:
      ValueError: the variable is none of kernel, embedding, scale, bias, mean and var.

    Example:
      >>> torch_name("layer1/0/bn1/var")
      'layer1.0.bn1.running_var'
    """
    *layers, variable = name.split("/")
    if variable not in _TENSORS:
        raise ValueError(f"variable {name!r} has no counterpart in PyTorch: expected one of {', '.join(_TENSORS)}")
    return ".".join([*layers, _TENSORS[variable]])


def torch_to_nnx_layout(tensor: np.ndarray) -> np.ndarray:
    """A weight in NNX's order of axes: ``[out, in, h, w] -> [h, w, in, out]`` and ``[out, in] -> [in, out]``.

    Tensors of one axis, the parameters of BatchNorm and biases, stay as they are.

    Example:
      >>> torch_to_nnx_layout(np.zeros((64, 3, 5, 7))).shape
      (5, 7, 3, 64)
    """
    # Axes out, in, then space: space first, then in, then out. For two axes this is the plain transpose.
    return tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim >= 2 else tensor


def torch_ignored(name: str) -> bool:
    """Whether a tensor of a state dict has no counterpart: BatchNorm's ``num_batches_tracked``."""
    return name.rpartition(".")[2] == _IGNORED


def load_torch(model: nnx.Module, tensors: Mapping[str, Any], *, source: str = "the state dict") -> nnx.Module:
    """A copy of the model that holds the weights and BatchNorm statistics of a PyTorch state dict; ``model`` is unchanged.

    Args:
      model: gives the names, shapes and dtypes. It may be abstract (made under ``nnx.eval_shape``) where the parameters
        and statistics are all that it holds.
      tensors: arrays by PyTorch's names, in PyTorch's layout. They are cast to the dtypes of the model.
      source: what errors call ``tensors``.

    Returns:
      A model of the same class.

    Raises:
      ValueError: as :func:`bqjax.adapters.flax.load.nnx_load`, with all tensors that do not fit.

    Example:
      >>> weights = {"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])}
      >>> model = load_torch(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), weights)
      >>> model(np.ones((1, 2), np.float32)).tolist()
      [[6.0]]
    """

    def convert(variable: str, tensor: np.ndarray) -> np.ndarray:
        return tensor if variable.rpartition("/")[2] == "embedding" else torch_to_nnx_layout(tensor)

    return nnx_load(model, tensors, torch_name, convert, ignored=torch_ignored, source=source)
