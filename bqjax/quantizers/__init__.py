"""Quantizers to train networks with: rounding with a gradient, learnable intervals, and the scale of EWGS from the Hessian.

``config`` says what to do, ``rounding`` rounds numbers of [0, 1], ``intervals`` takes weights and activations there and
back, ``hessian`` measures the gradient scale of EWGS. All are pure functions of arrays; ``bqjax.adapters.flax.apply`` puts them
into networks.
"""

from bqjax.quantizers.config import QuantizerConfig
from bqjax.quantizers.hessian import REASONS, HessianInfo, hessian_delta
from bqjax.quantizers.intervals import (
    fake_quantize_activations,
    fake_quantize_weights,
    libra_parameter_binarization,
    rounded_weights,
    start_activations,
    start_weights,
)
from bqjax.quantizers.rounding import dsq_round, ewgs_round, irnet_round, round_unit, ste_round

__all__ = [
    "REASONS",
    "HessianInfo",
    "QuantizerConfig",
    "dsq_round",
    "ewgs_round",
    "fake_quantize_activations",
    "fake_quantize_weights",
    "hessian_delta",
    "irnet_round",
    "libra_parameter_binarization",
    "round_unit",
    "rounded_weights",
    "start_activations",
    "start_weights",
    "ste_round",
]
