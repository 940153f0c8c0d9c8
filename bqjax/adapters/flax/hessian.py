"""The gradient scale of EWGS for each layer of a quantized NNX model, from the trace of the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax import nnx

from bqjax.adapters.flax.quantized import quantized_layers
from bqjax.quantizers import HessianInfo, fake_quantize_activations, hessian_delta, rounded_weights

__all__ = ["hessian_deltas"]


def hessian_deltas(
    model: nnx.Module, loss: Callable[[Any], jax.Array], key: jax.Array, **settings: Any
) -> tuple[dict[str, jax.Array], dict[str, HessianInfo]]:
    """:func:`~bqjax.quantizers.hessian_delta` for each layer whose weights go through EWGS, with respect to its rounded weights.

    As in the EWGS authors' code the Hessian is that of the straight-through estimator: the rounding of activations on the
    way counts as the identity, as through true rounding there is no curvature. Theirs has a scale for weights and one
    for activations; here the layer's one scale is that of its weights.

    Args:
      model: from :func:`~bqjax.adapters.flax.quantized.calibrate`; it is not changed.
      loss: ``loss(model) -> scalar`` on a batch; the model that it is given takes the place of ``model``.
      key: for the random signs.
      settings: ``samples``, ``max_delta`` and ``fallback`` of :func:`~bqjax.quantizers.hessian_delta`.

    Returns:
      ``(deltas, info)`` by name of layer, as :func:`~bqjax.adapters.flax.quantized.set_quantizers` takes the first. Layers
      without quantized weights are in neither. Traceable.

    Raises:
      ValueError: no layer has weights that are rounded by EWGS; as :func:`~bqjax.quantizers.hessian_delta`.

    References:
      Lee, Kim, Ham. Network Quantization with Element-wise Gradient Scaling. CVPR 2021, section 3.3.

    Example:
      >>> import jax.numpy as jnp
      >>> from bqjax.adapters.flax import calibrate, quantize
      >>> from bqjax.quantizers import QuantizerConfig
      >>> x = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)
      >>> model, _ = quantize(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), QuantizerConfig(weight_bits=2))
      >>> deltas, info = hessian_deltas(calibrate(model, x), lambda model: (model(x) ** 2).mean(), jax.random.key(0))
      >>> list(deltas), float(info["layers/0"].trace) > 0
      (['layers/0'], True)
    """
    units = {
        name: rounded_weights(layer.kernel[...], layer.scalars(), layer.config)
        for name, layer in quantized_layers(model).items()
        if layer.config.rounding == "ewgs" and layer.config.weight_bits is not None
    }
    if not units:
        raise ValueError(f"{type(model).__name__} has no layers whose weights are rounded by EWGS: there is no delta to measure")
    graph, state = nnx.split(model)

    def of_units(units: dict[str, jax.Array]) -> jax.Array:
        probe = nnx.merge(graph, state)
        for name, layer in quantized_layers(probe).items():
            if name in units:
                layer.promote_inner = partial(_smooth, layer, layer.promote_inner, units[name])
                layer.bypassed = True
        return loss(probe)

    deltas, info = hessian_delta(of_units, units, key, **settings)
    return deltas, {name: HessianInfo(*(field[name] for field in info)) for name in units}


def _smooth(layer: Any, promote: Callable[..., Any], unit: jax.Array, arrays: tuple[Any, Any, Any], **kwargs: Any) -> Any:
    """What stands before the layer's product: weights that are rounded already, inputs that are rounded straight through."""
    inputs, _, bias = arrays
    scalars = layer.scalars()
    inputs = fake_quantize_activations(inputs, scalars, replace(layer.config, rounding="ste"))
    return promote((inputs, scalars["scale"].astype(unit.dtype) * (2 * unit - 1), bias), **kwargs)
