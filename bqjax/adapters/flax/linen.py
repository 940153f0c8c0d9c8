"""Quantized layers in a Linen network: a transform of its parameters, and an interceptor for the layers' inputs.

Linen modules are not changed: kernels are rounded in the parameters that ``module.apply`` is given, inputs by
``flax.linen.intercept_methods`` around it. For NNX see :mod:`bqjax.adapters.flax.quantized`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen

from bqjax.core.rules import Rule, select
from bqjax.core.tree import named_leaves, replace
from bqjax.quantizers import QuantizerConfig, fake_quantize_activations, fake_quantize_weights, start_activations, start_weights

__all__ = ["LinenQuantized", "linen_quantize"]

_KINDS = (linen.Conv, linen.Dense)
Context: TypeAlias = linen.module.InterceptorContext
Scalars = dict[str, jax.Array]


class LinenQuantized(NamedTuple):
    """A quantized Linen network.

    Attributes:
      params: ``{"network": ..., "quantizers": {layer: {scalar: ...}}}``, all of it learnable.
      apply: ``apply(params, *args, delta=None, progress=0.0, variables=None, **kwargs)``: as ``module.apply``;
        ``variables`` are other collections in place of those given to :func:`linen_quantize`, ``delta`` and ``progress``
        as in :func:`~bqjax.quantizers.round_unit`.
      taken: config of each quantized layer.
      left: why each other layer stayed as it was.
    """

    params: dict[str, Any]
    apply: Callable[..., Any]
    taken: Mapping[str, QuantizerConfig]
    left: Mapping[str, str]


def linen_quantize(
    module: linen.Module,
    variables: Mapping[str, Any],
    rules: Sequence[Rule[QuantizerConfig]] | QuantizerConfig,
    batch: Any,
    **call: Any,
) -> LinenQuantized:
    """Quantizes the ``linen.Conv`` and ``linen.Dense`` layers of a module, with start values from one batch.

    Args:
      module: the module.
      variables: what ``module.init`` returned.
      rules: as in :func:`~bqjax.adapters.flax.quantized.quantize`, for the names of layers (``"Conv_0"``,
        ``"Block_1/Dense_0"``).
      batch: what the module is called with; layers that it does not reach cannot be quantized.
      **call: keyword arguments of every call, for instance ``train=False``; those of ``apply`` come on top.

    Returns:
      The parameters with learnable scalars, and the function of them.

    Raises:
      ValueError: a rule matches no layer; the activations are not finite; a layer is called under a transform that
        gives its parameters other names.

    Example:
      >>> module, x = linen.Dense(3), jnp.ones((4, 2))
      >>> net = linen.Sequential([module])
      >>> small = linen_quantize(net, net.init(jax.random.key(0), x), QuantizerConfig(), x)
      >>> sorted(small.params["quantizers"]), small.apply(small.params, x).shape
      (['layers_0'], (4, 3))
    """
    if isinstance(rules, QuantizerConfig):
        rules = [Rule("*", rules)]
    unboxed = linen.unbox(variables)
    network, collections = unboxed["params"], {name: value for name, value in unboxed.items() if name != "params"}
    run = partial(_run, module)
    kernels: dict[str, jax.Array] = {}
    run(partial(_discover, kernels), {**collections, "params": network}, (batch,), call)
    if not kernels:
        raise ValueError(f"{type(module).__name__} calls no linen.Conv or linen.Dense")
    selection = select(kernels, rules)
    taken = {name: rule.setting or QuantizerConfig() for name, rule in selection.taken.items()}
    quantizers: dict[str, Scalars] = {}
    run(partial(_calibrate, taken, quantizers), {**collections, "params": network}, (batch,), call)

    def apply(params: Any, *args: Any, delta: Any = None, progress: Any = 0.0, variables: Any = None, **kwargs: Any) -> Any:
        scalars, traced = params["quantizers"], {"delta": delta, "progress": progress}
        weights = _rounded_kernels(params["network"], taken, scalars, **traced)
        others = collections if variables is None else variables
        given = {**others, "params": replace(params["network"], weights)}
        return run(partial(_round_inputs, taken, scalars, traced), given, args, call | kwargs)

    return LinenQuantized({"network": network, "quantizers": quantizers}, apply, taken, selection.left)


def _run(module: linen.Module, interceptor: Any, variables: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
    with linen.intercept_methods(interceptor):
        return module.apply(variables, *args, **kwargs)


def _is_layer(context: Context) -> bool:
    return context.method_name == "__call__" and type(context.module) in _KINDS


def _name(context: Context) -> str:
    return "/".join(context.module.path)


# Interceptors: what is called in place of every method of every module, once their first arguments are given.


def _discover(kernels: dict[str, jax.Array], following: Callable[..., Any], args: Any, kwargs: Any, context: Context) -> Any:
    """Notes the kernel of each layer that is called."""
    if _is_layer(context):
        kernels[_name(context)] = context.module.variables["params"]["kernel"]
    return following(*args, **kwargs)


def _calibrate(
    taken: Mapping[str, QuantizerConfig],
    quantizers: dict[str, Scalars],
    following: Callable[..., Any],
    args: Any,
    kwargs: Any,
    context: Context,
) -> Any:
    """Gives each layer start values from its first inputs, and runs it quantized, so that later layers see what it gives."""
    name = _name(context)
    if not _is_layer(context) or name not in taken:
        return following(*args, **kwargs)
    params, config, (x, *rest) = dict(context.module.variables["params"]), taken[name], args

    def layer(x: jax.Array, kernel: jax.Array, bias: Any) -> jax.Array:
        given = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        return context.module.clone(parent=None, name=None).apply({"params": given}, x, *rest, **kwargs)

    if name not in quantizers:  # else the layer is called a second time
        quantizers[name] = _start(layer, x, params, config)
    scalars = quantizers[name]
    kernel = fake_quantize_weights(params["kernel"], scalars, config)
    return layer(fake_quantize_activations(x, scalars, config), kernel, params.get("bias"))


def _start(layer: Callable[..., jax.Array], x: jax.Array, params: Mapping[str, Any], config: QuantizerConfig) -> Scalars:
    """A layer's scalars, with the scale at which its output keeps its mean magnitude."""
    scalars = start_weights(params["kernel"], config) | start_activations(x, config)
    if config.activation_bits is not None:
        scalars["scale"] = scalars["scale"] * (scalars["activation_upper"] - scalars["activation_lower"])
    none = None if "bias" not in params else jnp.zeros_like(params["bias"])
    before = jnp.mean(jnp.abs(layer(x, params["kernel"], none)))
    kernel = fake_quantize_weights(params["kernel"], scalars, config)
    after = jnp.mean(jnp.abs(layer(fake_quantize_activations(x, scalars, config), kernel, none)))
    ratio = before / after
    scalars["scale"] = scalars["scale"] * jnp.where(jnp.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    return scalars


def _round_inputs(
    taken: Mapping[str, QuantizerConfig],
    scalars: Mapping[str, Scalars],
    traced: Mapping[str, Any],
    following: Callable[..., Any],
    args: Any,
    kwargs: Any,
    context: Context,
) -> Any:
    """Rounds the inputs of quantized layers; their kernels are rounded in the parameters."""
    name = _name(context)
    if _is_layer(context) and name in taken:
        x, *rest = args
        args = (fake_quantize_activations(x, scalars[name], taken[name], **traced), *rest)
    return following(*args, **kwargs)


def _rounded_kernels(
    network: Any, taken: Mapping[str, QuantizerConfig], scalars: Mapping[str, Scalars], **traced: Any
) -> dict[str, jax.Array]:
    """Kernels by leaf name, rounded."""
    leaves = named_leaves(network)
    names = {layer: f"{layer}/kernel" for layer in taken}
    return {
        names[layer]: fake_quantize_weights(leaves[names[layer]], scalars[layer], config, **traced)
        for layer, config in taken.items()
    }
