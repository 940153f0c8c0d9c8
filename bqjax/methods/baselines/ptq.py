"""Post-training quantization (PTQ) to integers, affine, per tensor or per channel, and the correction of biases for it.

Codes of ``bits`` bits stand for ``(code - zero_point) * scale``. A symmetric range has its zero point at code 0, an
asymmetric one at an integer between; either way a weight of zero stays zero. What a range should cover is the one
question, and three answers are here: all weights, all but a few, or what loses the least in squared error.

References:
  Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: a whitepaper", 2018 (arXiv 1806.08342).
  Nagel et al., "A white paper on neural network quantization", 2021 (arXiv 2106.08295), section 3.1: ranges.
  Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019 (arXiv 1906.04721),
  section 4.2: biases.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.leaves import Affine, is_compressed
from bqjax.core.rules import Rule, select
from bqjax.core.tree import check_finite, named_leaves, replace

__all__ = ["PTQConfig", "correct_biases", "quantize"]

# Values looked at per scale to find percentiles: those of a hundred million weights would need all of them sorted.
_SAMPLE = 2**20


@dataclass(frozen=True, kw_only=True)
class PTQConfig:
    """How weights are put on a line of integers.

    Attributes:
      bits: 2 to 8; codes are int8 whatever the number.
      axis: the axis along which every slice has its own scale, the output channels; None: one scale for the leaf. Leaves of
        fewer than two dimensions have one scale.
      symmetric: codes from ``-(2^(bits-1) - 1)`` on and zero point 0; False: from ``-2^(bits-1)`` on, over ``[low, high]``,
        where low is at most and high at least 0.
      limits: what the range covers: ``"minmax"`` every weight, ``"percentile"`` the middle ``percentile`` of them, ``"mse"`` that
        part of the range of minmax, among 64 down to an eighth, which has the least squared error.
      percentile: per cent of the weights inside, above 50. Asymmetric ranges lose half of the rest at each end. Of slices with
        more than 2^20 weights, about as many are looked at.
      scale_dtype: ``"float32"``, or ``"bfloat16"`` in two bytes, which pays where there are few weights a scale; codes are then
        those of the rounded scale.
    """

    bits: int = 8
    axis: int | None = -1
    symmetric: bool = True
    limits: Literal["minmax", "percentile", "mse"] = "minmax"
    percentile: float = 99.9
    scale_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int | np.integer) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, got {self.bits!r}; binarize() is for one bit")
        if self.limits not in ("minmax", "percentile", "mse"):
            raise ValueError(f'limits must be "minmax", "percentile" or "mse", got {self.limits!r}')
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, got {self.percentile}")
        if self.scale_dtype not in ("float32", "bfloat16"):
            raise ValueError(f'scale_dtype must be "float32" or "bfloat16", got {self.scale_dtype!r}')

    @property
    def codes(self) -> tuple[int, int]:
        """The least and the largest code."""
        top = 2 ** (self.bits - 1) - 1
        return (-top if self.symmetric else -top - 1), top


def _setting(pattern: str, name: str, setting: Any, config: PTQConfig, ndim: int) -> PTQConfig:
    if setting is None:
        found = config
    elif isinstance(setting, PTQConfig):
        found = setting
    elif isinstance(setting, int) and not isinstance(setting, bool):
        found = with_fields(config, bits=setting)
    else:
        raise ValueError(f"rule {pattern!r}: the setting must be a PTQConfig or a number of bits, got {setting!r}")
    if ndim < 2 or found.axis is None:
        return with_fields(found, axis=None)
    axis = operator.index(found.axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"leaf {name!r} has {ndim} dimensions and no axis {axis}: give it another, or None, by a rule")
    return with_fields(found, axis=axis % ndim)


def quantize(params: Any, rules: Sequence[Rule[PTQConfig | int]] | None = None, *, config: PTQConfig | None = None) -> Any:
    """Post-training quantization: rounds every chosen leaf to integers with a scale and a zero point.

    ``code = clip(round(w / scale) + zero_point)``. With codes from ``a`` to ``b`` and a range ``[low, high]``, the scale is
    ``max(-low, high) / b`` where symmetric, else ``(high - low) / (b - a)`` and the zero point ``round(a - low / scale)``.

    Args:
      params: pytree of arrays.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is a config or a number of bits.
        Without rules, floating-point leaves of two or more dimensions are taken.
      config: for leaves whose rule has no setting; None is ``PTQConfig()``.

    Returns:
      The tree with a :class:`bqjax.core.leaves.Affine` for every chosen leaf: int8 codes of its shape, scale in ``scale_dtype``
      and int32 zero point, ``[]`` or ``[shape[axis]]``. A slice that is zero everywhere comes out exact. Traceable.

    Raises:
      ValueError: an axis that a leaf does not have; integer leaves; rules with groups; NaN or infinite weights (concrete
        ones only); whatever :func:`bqjax.core.rules.select` refuses. The message names the leaf.

    Example:
      >>> params = {"kernel": np.float32([[1.75, -0.02], [-0.5, 0.07]]), "bias": np.zeros(2, np.float32)}
      >>> leaf = quantize(params, config=PTQConfig(bits=4))["kernel"]
      >>> leaf.codes.tolist(), np.float64(leaf.scale).round(4).tolist()
      ([[7, -2], [-2, 7]], [0.25, 0.01])
    """
    leaves, taken = named_leaves(params), select(params, rules).taken
    new: dict[str, Affine] = {}
    for name, rule in taken.items():
        leaf = leaves[name]
        if rule.group is not None:
            raise ValueError(f"leaf {name!r} is in group {rule.group!r}, but scales are not shared: take group out of the rule")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"leaf {name!r} is of integers already, {leaf.dtype}: skip it, Rule({name!r}, skip=True)")
        check_finite(name, leaf)
        setting = _setting(rule.pattern, name, rule.setting, config or PTQConfig(), leaf.ndim)
        codes, scale, zero_point = _quantize(jnp.asarray(leaf), setting)
        new[name] = Affine(codes, scale.astype(setting.scale_dtype), zero_point, setting.axis, leaf.dtype, int(setting.bits))
    return replace(params, new)


# Compiled as a whole: one by one, its operations would be compiled for every shape of a network.
@functools.partial(jax.jit, static_argnums=1)
def _quantize(weight: jax.Array, config: PTQConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes of the weight's shape, and scale and zero point ``[]`` or ``[shape[axis]]``."""
    # Slices along the first of two axes; scales are columns [c, 1] until the end.
    moved = weight[None] if config.axis is None else jnp.moveaxis(weight, config.axis, 0)
    rows = moved.reshape(moved.shape[0], -1).astype(jnp.float32)
    low, high = _ends(rows, config)
    if config.limits == "mse":
        low, high = _shrunk(rows, low, high, config)
    scale, zero = _line(low, high, config)
    codes = _codes(rows, scale, zero, config).astype(jnp.int8).reshape(moved.shape)
    if config.axis is None:
        return codes[0], scale[0, 0], zero[0, 0].astype(jnp.int32)
    return jnp.moveaxis(codes, 0, config.axis), scale[:, 0], zero[:, 0].astype(jnp.int32)


def _ends(rows: jax.Array, config: PTQConfig) -> tuple[jax.Array, jax.Array]:
    """The range ``[c, 1]`` of each row before any search, with zero inside."""
    if config.limits == "percentile":
        sample = rows[:, :: max(1, rows.shape[1] // _SAMPLE)]
        if config.symmetric:
            high = jnp.percentile(jnp.abs(sample), config.percentile, 1, keepdims=True)
            return -high, high
        outside = (100 - config.percentile) / 2
        low, high = jnp.percentile(sample, jnp.array([outside, 100 - outside]), 1, keepdims=True)
    else:
        low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    return jnp.minimum(low, 0), jnp.maximum(high, 0)


def _line(low: jax.Array, high: jax.Array, config: PTQConfig) -> tuple[jax.Array, jax.Array]:
    """Scale and zero point, a whole number in float32, that cover a range."""
    first, last = config.codes
    # Each end is divided by itself: the width of a range can overflow where its ends do not.
    scale = jnp.maximum(-low, high) / last if config.symmetric else high / (last - first) - low / (last - first)
    # A range may be empty, or its scale too small to be a normal number: any scale then stands for a row of zeros.
    scale = jnp.where(scale >= jnp.finfo(jnp.float32).tiny, scale, 1)
    if config.scale_dtype == "bfloat16":
        scale = jnp.minimum(scale, jnp.float32(jnp.finfo(jnp.bfloat16).max)).astype(jnp.bfloat16).astype(jnp.float32)
    zero = jnp.zeros_like(scale) if config.symmetric else jnp.clip(jnp.round(first - low / scale), first, last)
    return scale, zero


def _codes(rows: jax.Array, scale: jax.Array, zero: jax.Array, config: PTQConfig) -> jax.Array:
    return jnp.clip(jnp.round(rows / scale) + zero, *config.codes)


def _shrunk(rows: jax.Array, low: jax.Array, high: jax.Array, config: PTQConfig) -> tuple[jax.Array, jax.Array]:
    """The range, cut at both ends by the same factor, whose codes have the least squared error."""

    def improve(i: Any, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        least, chosen = best
        factor = jnp.float32(1) - i.astype(jnp.float32) / 72
        scale, zero = _line(low * factor, high * factor, config)
        # Relative to the range, so that squares neither overflow nor vanish.
        error = (rows - (_codes(rows, scale, zero, config) - zero) * scale) / jnp.where(high > low, jnp.maximum(-low, high), 1)
        total = jnp.square(error).sum(1, keepdims=True)
        return jnp.where(total < least, total, least), jnp.where(total < least, factor, chosen)

    start = jnp.full_like(low, jnp.inf), jnp.ones_like(low)
    factor = lax.fori_loop(0, 64, improve, start)[1]
    return low * factor, high * factor


def correct_biases(params: Any, compressed: Any, mean_inputs: Mapping[str, Any], biases: Mapping[str, str] | None = None) -> Any:
    """Bias correction: biases with which layers have, on average, the outputs that they had before their weights were compressed.

    ``b <- b + sum_i (W_i - W'_i) E[x_i]`` over the inputs ``i`` of an output, ``W'`` being what is decoded. For convolutions
    the mean is over all positions too, and what padding does at the borders is left out. Any compressed leaf will do.

    Args:
      params: the parameters before.
      compressed: the tree after, with the same names.
      mean_inputs: mean input ``[cin]`` of layers by the name of their kernel ``[*spatial, cin / groups, cout]``. In grouped and
        depthwise convolutions the outputs are in order of the groups, as JAX has them.
      biases: name of the bias ``[cout]`` of a kernel where it is not that of its neighbour ``bias``.

    Returns:
      ``compressed`` with those biases replaced; of the dtype that they had.

    Raises:
      ValueError: a kernel that does not exist, was not compressed or has no bias that is an array ``[cout]``; a mean of
        unfit shape or with NaN or infinite entries.

    Example:
      >>> params = {"kernel": np.float32([[1.0], [0.25]]), "bias": np.zeros(1, np.float32)}
      >>> compressed = quantize(params, config=PTQConfig(bits=2))  # codes 1 and 0: 0.25 is lost
      >>> correct_biases(params, compressed, {"kernel": np.float32([5, 3])})["bias"].tolist()
      [0.75]
    """
    before, after = named_leaves(params), named_leaves(compressed)
    new: dict[str, jax.Array] = {}
    for name, mean in mean_inputs.items():
        replace(params, {name: None})  # names the leaf that does not exist
        leaf: Any = after.get(name)
        if not is_compressed(leaf) or leaf.shape != before[name].shape or len(leaf.shape) < 2:
            raise ValueError(f"leaf {name!r} is no compressed kernel of shape {np.shape(before[name])}: take it out of mean_inputs")
        *_, per_group, cout = leaf.shape
        mean = jnp.asarray(mean)
        if mean.ndim != 1 or mean.size % per_group or cout % (mean.size // per_group):
            raise ValueError(f"leaf {name!r} of shape {leaf.shape} needs a mean input [{per_group} * groups], got {mean.shape}")
        check_finite(f"mean_inputs of {name}", mean)
        bias_name = (biases or {}).get(name, name.rpartition("/")[0] + "/bias" if "/" in name else "bias")
        bias: Any = after.get(bias_name)
        if is_compressed(bias) or np.shape(bias) != (cout,):
            raise ValueError(f"leaf {name!r} needs a bias of shape {(cout,)}, but {bias_name!r} is none: name it in biases")
        new[bias_name] = _corrected(jnp.asarray(before[name]), leaf.decode(), mean, jnp.asarray(bias))
    return replace(compressed, new)


@jax.jit
def _corrected(before: jax.Array, after: jax.Array, mean: jax.Array, bias: jax.Array) -> jax.Array:
    lost = (before.astype(jnp.float32) - after.astype(jnp.float32)).reshape(-1, *before.shape[-2:]).sum(0)
    per_group, cout = lost.shape
    groups = mean.size // per_group
    lost = lost.reshape(per_group, groups, cout // groups)
    change = jnp.einsum("igo,gi->go", lost, mean.astype(jnp.float32).reshape(groups, per_group), precision=lax.Precision.HIGHEST)
    return (bias.astype(jnp.float32) + change.reshape(cout)).astype(bias.dtype)
