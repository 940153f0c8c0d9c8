"""Flax networks as a plain pytree of parameters and a pure function of them; weights loaded into them; quantized layers."""

from bqjax.adapters.flax.apply import linen_apply, nnx_apply, nnx_params, nnx_with_params
from bqjax.adapters.flax.equalize import equalize_channels
from bqjax.adapters.flax.hessian import hessian_deltas
from bqjax.adapters.flax.linen import linen_quantize
from bqjax.adapters.flax.load import nnx_load
from bqjax.adapters.flax.quantized import calibrate, quantize, set_quantizers

__all__ = [
    "calibrate",
    "equalize_channels",
    "hessian_deltas",
    "linen_apply",
    "linen_quantize",
    "nnx_apply",
    "nnx_load",
    "nnx_params",
    "nnx_with_params",
    "quantize",
    "set_quantizers",
]
