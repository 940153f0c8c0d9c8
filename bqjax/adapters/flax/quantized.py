"""Quantized layers in a user's Flax network, by rule and in one call.

NNX: :func:`quantize` gives a copy of a model whose ``nnx.Conv`` and ``nnx.Linear`` layers are quantized, :func:`calibrate`
sets its intervals from one batch, :func:`set_quantizers` changes what training changes (the gradient scale of EWGS, the
progress for IR-Net). The learnable scalars are :class:`QuantizerParam`, a kind of ``nnx.Param``, so that an optimiser sees
them and can give them a learning rate of their own. For Linen see :mod:`bqjax.adapters.flax.linen`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx

from bqjax.core.rules import Rule, select
from bqjax.quantizers import QuantizerConfig, fake_quantize_activations, fake_quantize_weights, start_activations, start_weights

__all__ = [
    "QuantizeInfo",
    "QuantizedConv",
    "QuantizedLinear",
    "QuantizerParam",
    "QuantizerState",
    "calibrate",
    "quantize",
    "quantized_layers",
    "set_quantizers",
]

SCALARS = ("weight_lower", "weight_upper", "activation_lower", "activation_upper", "scale")


class QuantizerParam(nnx.Param):
    """A learnable scalar of a quantizer: an end of an interval, or the output scale."""


class QuantizerState(nnx.Variable):
    """A scalar of a quantizer that training sets and no gradient reaches: ``delta`` and ``progress``."""


class QuantizeInfo(NamedTuple):
    """What :func:`quantize` did.

    Attributes:
      taken: config of each quantized layer, by the layer's name.
      left: why each other layer with a kernel stayed as it was, by name.
    """

    taken: Mapping[str, QuantizerConfig]
    left: Mapping[str, str]


class _Quantized:
    """What quantized layers share: they stand between a layer and its ``promote_dtype``, where inputs and kernel meet."""

    config: QuantizerConfig
    kernel: Any
    bias: Any
    scale: Any
    activation_lower: Any
    activation_upper: Any
    delta: Any
    progress: Any
    observing: bool
    calibrated: bool
    bypassed: bool

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """As the layer, from quantized inputs and weights: ``scale * layer(a_q, w_q) + bias``."""
        if self.observing and not self.calibrated:  # a layer that is called twice takes its first inputs
            self._observe(x, *args, **kwargs)
        elif self.config.activation_bits is not None and not self.calibrated:
            raise ValueError("the intervals of activations have no start values yet: model = calibrate(model, batch)")
        return super().__call__(x, *args, **kwargs)  # type: ignore[misc]

    # nnx.Conv and nnx.Linear call self.promote_dtype((inputs, kernel, bias)) just before the product. A property of that
    # name sees all three whatever else the layer does (padding, batch dimensions, precision).
    @property
    def promote_dtype(self) -> Callable[..., Any]:
        if self.bypassed:
            return self.promote_inner
        return self._quantize_then_promote

    @promote_dtype.setter
    def promote_dtype(self, function: Callable[..., Any]) -> None:
        self.promote_inner = function

    def _quantize_then_promote(self, arrays: tuple[Any, Any, Any], **kwargs: Any) -> Any:
        inputs, kernel, bias = arrays
        scalars = self.scalars()
        traced = {"delta": self.delta[...], "progress": self.progress[...]}
        inputs = fake_quantize_activations(inputs, scalars, self.config, **traced)
        kernel = fake_quantize_weights(kernel, scalars, self.config, **traced)
        return self.promote_inner((inputs, kernel, bias), **kwargs)

    def scalars(self) -> dict[str, jax.Array]:
        """The layer's learnable scalars, as :mod:`bqjax.quantizers.intervals` names them."""
        return {name: getattr(self, name)[...] for name in SCALARS if hasattr(self, name)}

    def _observe(self, x: jax.Array, *args: Any, **kwargs: Any) -> None:
        """Starts of the activations' interval, and the scale at which the output keeps its mean magnitude."""
        for name, value in (start_activations(x, self.config) | start_weights(self.kernel[...], self.config)).items():
            getattr(self, name)[...] = value
        # In units of the interval's width: the width goes into the scale.
        if self.config.activation_bits is not None:
            self.scale[...] = self.scale[...] * (self.activation_upper[...] - self.activation_lower[...])
        self.bypassed = True
        exact = super().__call__(x, *args, **kwargs)  # type: ignore[misc]
        self.bypassed = False
        rounded = super().__call__(x, *args, **kwargs)  # type: ignore[misc]
        bias = 0.0 if self.bias is None else jnp.reshape(self.bias[...], (1,) * (exact.ndim - 1) + (-1,))
        before, after = (jnp.mean(jnp.abs(y - bias)) for y in (exact, rounded))
        ratio = before / after
        # Of a layer that puts out nothing there is no ratio to learn from.
        self.scale[...] = self.scale[...] * jnp.where(jnp.isfinite(ratio) & (ratio > 0), ratio, 1.0)
        self.calibrated = True

    def _start(self, layer: Any, config: QuantizerConfig) -> None:
        self.kernel, self.bias = layer.kernel, layer.bias
        self.config = config
        self.bypassed = self.observing = self.calibrated = False
        starts = start_weights(self.kernel[...], config)
        if config.activation_bits is not None:
            starts |= {"activation_lower": jnp.zeros(()), "activation_upper": jnp.ones(())}
        for name, value in starts.items():
            setattr(self, name, QuantizerParam(value))
        self.delta = QuantizerState(jnp.float32(config.delta))
        self.progress = QuantizerState(jnp.zeros(()))


_CONV = ("strides", "padding", "input_dilation", "kernel_dilation", "feature_group_count", "conv_general_dilated")
_BOTH = ("use_bias", "dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")


class QuantizedConv(_Quantized, nnx.Conv):
    """An ``nnx.Conv`` with quantized weights and inputs; made by :func:`quantize`, with the layer's own kernel and bias.

    Besides ``kernel`` and ``bias`` it has the scalars of :mod:`bqjax.quantizers.intervals` as :class:`QuantizerParam`, and
    ``delta`` and ``progress`` as :class:`QuantizerState`.
    """

    def __init__(self, layer: nnx.Conv, config: QuantizerConfig):
        self.bypassed = False
        settings = {name: getattr(layer, name) for name in (*_CONV, *_BOTH)}
        super().__init__(layer.in_features, layer.out_features, layer.kernel_size, **settings, **_NO_DRAWS, rngs=nnx.Rngs(0))
        self._start(layer, config)


class QuantizedLinear(_Quantized, nnx.Linear):
    """An ``nnx.Linear`` with quantized weights and inputs, as :class:`QuantizedConv`."""

    def __init__(self, layer: nnx.Linear, config: QuantizerConfig):
        self.bypassed = False
        settings = {name: getattr(layer, name) for name in ("dot_general", *_BOTH)}
        super().__init__(layer.in_features, layer.out_features, **settings, **_NO_DRAWS, rngs=nnx.Rngs(0))
        self._start(layer, config)


# The parameters are about to be replaced.
_NO_DRAWS: dict[str, Any] = {"kernel_init": nnx.initializers.zeros_init()}
_KINDS: dict[type, Any] = {nnx.Conv: QuantizedConv, nnx.Linear: QuantizedLinear}


def quantize(model: nnx.Module, rules: Sequence[Rule[QuantizerConfig]] | QuantizerConfig) -> tuple[Any, QuantizeInfo]:
    """A copy of an NNX model whose convolutions and dense layers are quantized.

    Args:
      model: any NNX model; it is not changed. Layers that are exactly ``nnx.Conv`` or ``nnx.Linear`` can be quantized.
      rules: patterns for the names of layers (``"layer1/0/conv1"``, ``"layer*/conv?"``), each with a
        :class:`~bqjax.quantizers.QuantizerConfig` as its setting, or None for the default; the first match decides,
        and layers that none matches are left alone. A config alone is for every layer.

    Returns:
      ``(model, info)``. Where activations are quantized, :func:`calibrate` comes next.

    Raises:
      ValueError: a rule matches no layer, or chooses one with a mask or with group names; the model has no such layers,
        or is itself one; a layer is already quantized.

    Example:
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
      >>> small, info = quantize(model, [Rule("layers/0", skip=True), Rule("*", QuantizerConfig(weight_bits=1))])
      >>> dict(info.left), list(info.taken)
      ({'layers/0': "skipped by rule 'layers/0'"}, ['layers/2'])
      >>> small = calibrate(small, jnp.ones((3, 4)))
      >>> small(jnp.ones((3, 4))).shape
      (3, 2)
    """
    if isinstance(rules, QuantizerConfig):
        rules = [Rule("*", rules)]
    if type(model) in _KINDS:
        raise ValueError(f"the model is itself a {type(model).__name__}: put it into nnx.Sequential, so that it can be replaced")
    for rule in rules:
        if rule.setting is not None and not isinstance(rule.setting, QuantizerConfig):
            raise ValueError(f"the setting of rule {rule.pattern!r} must be a QuantizerConfig, got {rule.setting!r}")
        if rule.group is not None:
            raise ValueError(f"rule {rule.pattern!r} names group {rule.group!r}, but quantized layers share nothing")
    model = nnx.clone(model)
    found: dict[str, Any] = {}
    other: dict[str, str] = {}
    for path, module in nnx.iter_modules(model):
        name = "/".join(map(str, path))
        if isinstance(module, _Quantized):
            raise ValueError(f"layer {name!r} is already quantized: call quantize on the float model")
        if type(module) in _KINDS:
            found[name] = module
        elif isinstance(getattr(module, "kernel", None), nnx.Param):
            other[name] = f"a {type(module).__name__}, neither exactly nnx.Conv nor nnx.Linear"
    if not found:
        raise ValueError(f"{type(model).__name__} has no nnx.Conv or nnx.Linear to quantize")
    # Layers in the order of the model's own names, which is what reports list.
    selection = select({name: module.kernel[...] for name, module in found.items()}, rules)
    taken, new = {}, {}
    for name, rule in selection.taken.items():
        layer, config = found[name], rule.setting or QuantizerConfig()
        if getattr(layer, "mask", None) is not None:
            raise ValueError(f"layer {name!r} has a mask, whose zeros would not stay zero: skip it by a rule")
        taken[name] = config
        new[id(layer)] = _KINDS[type(layer)](layer, config)
    # A layer that several places share is replaced in all of them by one.
    for _, parent in list(nnx.iter_modules(model)):
        for key, child in list(vars(parent).items()):
            if id(child) in new:
                if isinstance(parent, nnx.List):
                    parent[int(key)] = new[id(child)]
                else:
                    setattr(parent, key, new[id(child)])
    missing = taken.keys() - quantized_layers(model).keys()
    if missing:
        raise ValueError(
            f"layers {sorted(missing)} are not attributes of modules or in nnx.List, and cannot be replaced; skip them"
        )
    return model, QuantizeInfo(taken, dict(selection.left) | other)


def quantized_layers(model: nnx.Module) -> dict[str, Any]:
    """The quantized layers of a model by name; their attributes may be read and set."""
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, _Quantized)}


def calibrate(model: nnx.Module, batch: Any) -> Any:
    """A copy of a quantized model with start values from the activations of one batch.

    In one pass in evaluation mode, each layer takes ``[min(a), 3 std(a) / sqrt(1 - 2 / pi)]`` of its inputs as their
    interval, ``+-3 std(w)`` for its weights, and the output scale at which the mean magnitude of its output is what it was.
    Inputs are those that quantized layers before it give.

    Args:
      model: from :func:`quantize`; it is not changed.
      batch: what the model is called with.

    Returns:
      The calibrated model, in the mode that ``model`` is in.

    Raises:
      ValueError: the model has no quantized layers, a layer does not take part in the forward pass, or its inputs are not
        finite.
    """
    if not quantized_layers(model):
        raise ValueError(f"{type(model).__name__} has no quantized layers: model, info = quantize(model, rules)")
    probe = nnx.view(nnx.clone(model), use_running_average=True, deterministic=True, raise_if_not_found=False)
    seen = quantized_layers(probe)
    for layer in seen.values():
        layer.observing, layer.calibrated = True, False
    cast(Any, probe)(batch)
    if unused := sorted(name for name, layer in seen.items() if not layer.calibrated):
        raise ValueError(f"layers {unused} took no part in the forward pass: skip them by a rule")
    model = nnx.clone(model)
    for name, layer in quantized_layers(model).items():
        for scalar in SCALARS:
            if hasattr(layer, scalar):
                getattr(layer, scalar)[...] = getattr(seen[name], scalar)[...]
        layer.calibrated = True
    return model


def set_quantizers(model: nnx.Module, *, progress: Any = None, delta: Any = None) -> None:
    """Sets, in place, what the rounding of all quantized layers is told.

    Args:
      model: with quantized layers.
      progress: share of training that is done, 0 to 1; IR-Net's schedule.
      delta: EWGS's gradient scale, one for all layers or a mapping by name of layer.

    Raises:
      ValueError: ``delta`` names a layer that the model does not have, or the model has no quantized layers.
    """
    layers = quantized_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no quantized layers: model, info = quantize(model, rules)")
    if isinstance(delta, Mapping) and (unknown := set(delta) - set(layers)):
        raise ValueError(f"delta names layers {sorted(unknown)}; the quantized layers are {sorted(layers)}")
    for name, layer in layers.items():
        if progress is not None:
            layer.progress[...] = jnp.asarray(progress, jnp.float32)
        value = delta.get(name) if isinstance(delta, Mapping) else delta
        if value is not None:
            layer.delta[...] = jnp.asarray(value, jnp.float32)
