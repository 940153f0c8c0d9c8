"""Quantized layers in a Linen network: a transform of its parameters, and an interceptor for the layers' inputs.

Linen modules are not changed: kernels are rounded in the parameters that ``module.apply`` is given, inputs by
``flax.linen.intercept_methods`` around it. For NNX see :mod:`bqjax.adapters.flax.quantized`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from bqjax.core.rules import Rule, select
from bqjax.core.tree import replace
from bqjax.quantizers import QuantizerConfig, fake_quantize_activations, fake_quantize_weights, start_activations, start_weights

__all__ = ["LinenQuantized", "linen_quantize"]

_KINDS = (linen.Conv, linen.Dense)


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
    collections = {name: value for name, value in linen.unbox(variables).items() if name != "params"}
    network = linen.unbox(variables)["params"]
    kernels: dict[str, jax.Array] = {}

    def discover(following: Callable[..., Any], args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        if _is_layer(context):
            kernels["/".join(context.module.path)] = context.module.variables["params"]["kernel"]
        return following(*args, **kwargs)

    def run(params: Any, interceptor: Any, others: Any, args: Any, kwargs: Any) -> Any:
        with linen.intercept_methods(interceptor):
            return module.apply({**others, "params": params}, *args, **kwargs)

    run(network, discover, collections, (batch,), call)
    if not kernels:
        raise ValueError(f"{type(module).__name__} calls no linen.Conv or linen.Dense")
    selection = select(kernels, rules)
    taken = {name: rule.setting or QuantizerConfig() for name, rule in selection.taken.items()}
    quantizers: dict[str, dict[str, jax.Array]] = {}

    def calibrate(following: Callable[..., Any], args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        name = "/".join(context.module.path)
        if not _is_layer(context) or name not in taken:
            return following(*args, **kwargs)
        params, config, (x, *rest) = dict(context.module.variables["params"]), taken[name], args
        if name in quantizers:  # the layer is called a second time
            scalars = quantizers[name]
        else:
            scalars = start_weights(params["kernel"], config) | start_activations(x, config)
            if config.activation_bits is not None:
                scalars["scale"] = scalars["scale"] * (scalars["activation_upper"] - scalars["activation_lower"])

        def layer(x: jax.Array, kernel: jax.Array, bias: Any) -> jax.Array:
            given = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
            return context.module.clone(parent=None, name=None).apply({"params": given}, x, *rest, **kwargs)

        inputs = fake_quantize_activations(x, scalars, config)
        if name not in quantizers:
            none = None if "bias" not in params else jnp.zeros_like(params["bias"])
            before = jnp.mean(jnp.abs(layer(x, params["kernel"], none)))
            after = jnp.mean(jnp.abs(layer(inputs, fake_quantize_weights(params["kernel"], scalars, config), none)))
            ratio = before / after
            scalars["scale"] = scalars["scale"] * jnp.where(jnp.isfinite(ratio) & (ratio > 0), ratio, 1.0)
            quantizers[name] = scalars
        return layer(inputs, fake_quantize_weights(params["kernel"], scalars, config), params.get("bias"))

    run(network, calibrate, collections, (batch,), call)

    def apply(params: Any, *args: Any, delta: Any = None, progress: Any = 0.0, variables: Any = None, **kwargs: Any) -> Any:
        scalars = params["quantizers"]

        def inputs(following: Callable[..., Any], args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
            name = "/".join(context.module.path)
            if _is_layer(context) and name in taken:
                x, *rest = args
                x = fake_quantize_activations(x, scalars[name], taken[name], delta=delta, progress=progress)
                args = (x, *rest)
            return following(*args, **kwargs)

        weights = {}
        for name, config in taken.items():
            kernel = params["network"]
            for key in (*name.split("/"), "kernel"):
                kernel = kernel[key]
            weights[f"{name}/kernel"] = fake_quantize_weights(kernel, scalars[name], config, delta=delta, progress=progress)
        others = collections if variables is None else variables
        return run(replace(params["network"], weights), inputs, others, args, call | kwargs)

    return LinenQuantized({"network": network, "quantizers": quantizers}, apply, taken, selection.left)


def _is_layer(context: linen.module.InterceptorContext) -> bool:
    return context.method_name == "__call__" and type(context.module) in _KINDS
