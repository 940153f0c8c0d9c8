"""Settings of a quantized layer: bits, rounding and start values of weights and activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["QuantizerConfig", "Rounding", "check_bits"]

Rounding = Literal["ewgs", "ste", "dsq", "irnet"]
WeightStart = Literal["std", "range"]
ActivationStart = Literal["std", "mse"]
ROUNDINGS = ("ewgs", "ste", "dsq", "irnet")
# float32 holds 24 bits of a number in [0, 1]; a grid of 2^16 still has steps that are far above its rounding error.
MAX_BITS = 16


def check_bits(bits: int, what: str = "bits") -> None:
    """Raises ``ValueError`` where ``bits`` is not a whole number from 1 to 16."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise ValueError(f"{what} must be a whole number from 1 to {MAX_BITS}, got {bits!r}")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """How one layer is quantized.

    Attributes:
      weight_bits: bits of a weight, 1 to 16; None leaves the weights as they are.
      activation_bits: bits of the layer's inputs, 1 to 16; None leaves them as they are.
      rounding: how gradients pass the rounding: ``"ewgs"`` (Lee et al. 2021), ``"ste"`` (straight through), ``"dsq"``
        (Gong et al. 2019) or ``"irnet"`` (Qin et al. 2020; weights of one bit, and inputs of more bits go straight
        through).
      delta: gradient scale of EWGS where the trace of the Hessian is not measured; 0 is the straight-through estimator.
      dsq_alpha: DSQ's distance to true rounding, above 0 (a staircase) and below 1 (no quantization).
      keep_offset: whether quantized inputs keep the lower end of their interval, so that a layer whose inputs may be
        negative computes what it did. False maps them to [0, 1] as the EWGS authors' code does; the two agree
        where the interval starts at 0, as it does behind a relu.
      weight_start: where the interval of weights starts: ``"std"``, three standard deviations, as the EWGS authors do, or
        ``"range"``, the largest magnitude (ours): trained weights reach far out, and a network of many bits that is not
        trained on does better with all of them.
      activation_start: where the interval of activations ends at the start: ``"std"``, three deviations of the distribution whose
        half they are, as the EWGS authors do, or ``"mse"``, where quantizing changes them least (ours). At one bit the former
        has its threshold at 1.5 deviations, so that 7 % of the outputs of a relu are not zero.

    Raises:
      ValueError: a number is out of range, the rounding is unknown, nothing is quantized, or IR-Net is to round
        weights of more than one bit.

    Example:
      >>> QuantizerConfig(weight_bits=1, activation_bits=8).rounding
      'ewgs'
    """

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    rounding: Rounding = "ewgs"
    delta: float = 1e-3
    dsq_alpha: float = 0.2
    keep_offset: bool = True
    weight_start: WeightStart = "std"
    activation_start: ActivationStart = "std"

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits"):
            if getattr(self, field) is not None:
                check_bits(getattr(self, field), field)
        if self.weight_bits is None and self.activation_bits is None:
            raise ValueError("weight_bits and activation_bits are both None: give one of them, or skip the layer by a rule")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {self.rounding!r}")
        if self.weight_start not in ("std", "range"):
            raise ValueError(f"weight_start must be std or range, got {self.weight_start!r}")
        if self.activation_start not in ("std", "mse"):
            raise ValueError(f"activation_start must be std or mse, got {self.activation_start!r}")
        if not (math.isfinite(self.delta) and self.delta >= 0):
            raise ValueError(f"delta must be finite and at least 0 (0 is the straight-through estimator), got {self.delta}")
        if not 0 < self.dsq_alpha < 1:
            raise ValueError(f"dsq_alpha must be above 0 and below 1, got {self.dsq_alpha}")
        if self.rounding == "irnet" and self.weight_bits not in (None, 1):
            raise ValueError(f'rounding "irnet" is for weights of one bit, got weight_bits={self.weight_bits}; use "ewgs" or "dsq"')
