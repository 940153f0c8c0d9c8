"""Cross-channel equalization: output channels of one root mean square, which the BatchNorm behind a layer takes back.

Behind a layer without bias, BatchNorm divides each output channel by its standard deviation: the sizes of the kernel's channels
mean nothing to the network, but blocks of large and of small channels do not fit one codebook. Equalized, they do, and channels of
small weights do not lose more than others.

References:
  Nagel et al. 2019 (arXiv 1906.04721), section 4.1: the same between two layers, for integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import nnx

__all__ = ["batch_norms", "equalize_channels"]


def _layers(model: nnx.Module) -> dict[str, nnx.Module]:
    return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def batch_norms(model: nnx.Module, layers: list[str]) -> dict[str, str]:
    """The BatchNorm of each layer by name, where names are as in ResNets: ``bn2`` beside ``conv2``, or ``bn`` beside ``conv``.

    Raises:
      ValueError: a layer has none.
    """
    modules, found = _layers(model), {}
    for layer in layers:
        head, _, last = layer.rpartition("/")
        name = f"{head}/{last.replace('conv', 'bn')}".removeprefix("/")
        if last == last.replace("conv", "bn") or not isinstance(modules.get(name), nnx.BatchNorm):
            raise ValueError(f"layer {layer!r} has no BatchNorm beside it that is named {name!r}: its channels cannot be equalized")
        found[layer] = name
    return found


def equalize_channels(model: nnx.Module, norms: Mapping[str, str], groups: Mapping[str, str] | None = None) -> nnx.Module:
    """Cross-channel equalization: a copy of the model whose kernels have output channels of one size, and which computes the same.

    All output channels of a kernel get one root mean square: channel ``c`` is divided by ``s_c``; BatchNorm's running mean by
    ``s_c``, its variance by ``s_c^2``, and ``epsilon`` is made up for in its scale, so that evaluation gives the same outputs but
    for rounding. In training only ``epsilon`` tells the difference.

    Args:
      model: with ``nnx.Conv`` or ``nnx.Linear`` layers without bias.
      norms: name of the ``nnx.BatchNorm`` that takes the outputs of each layer, and of nothing else.
      groups: of layers that get one size together; others get that of their own kernel, which its mean square keeps.

    Raises:
      ValueError: a layer has a bias or no kernel, or BatchNorm is of another number of channels or has no scale.

    Example:
      >>> net = nnx.Sequential(nnx.Conv(2, 3, (3, 3), use_bias=False, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
      >>> same = equalize_channels(net, {"layers/0": "layers/1"})
      >>> size = jnp.sqrt(jnp.square(same.layers[0].kernel[...]).mean((0, 1, 2)))
      >>> bool(size.std() < 1e-6 * size.mean())
      True
    """
    model = nnx.clone(model)
    modules, squares = _layers(model), dict[str, list[np.ndarray]]()
    for layer, norm in norms.items():
        kernel, batch_norm = getattr(modules.get(layer), "kernel", None), modules.get(norm)
        if kernel is None or getattr(modules[layer], "bias", None) is not None:
            raise ValueError(
                f"layer {layer!r} must have a kernel and no bias: its BatchNorm could not take its channels' sizes back"
            )
        if not isinstance(batch_norm, nnx.BatchNorm) or batch_norm.num_features != kernel.shape[-1] or batch_norm.scale is None:
            raise ValueError(f"{norm!r} must be a BatchNorm with a scale, of the {kernel.shape[-1]} output channels of {layer!r}")
        squares.setdefault((groups or {}).get(layer, layer), []).append(np.square(np.asarray(kernel[...], np.float64)).ravel())
    for layer, norm in norms.items():
        module, batch_norm = modules[layer], cast(nnx.BatchNorm, modules[norm])
        kernel = module.kernel[...]
        target = math.sqrt(np.concatenate(squares[(groups or {}).get(layer, layer)]).mean())
        size = jnp.sqrt(jnp.square(kernel).mean(tuple(range(kernel.ndim - 1))))
        s = jnp.where(size > 0, size / target, 1.0)
        module.kernel[...] = kernel / s.reshape((1,) * (kernel.ndim - 1) + (-1,))
        before = batch_norm.var[...]
        after = before / jnp.square(s)
        batch_norm.mean[...] = batch_norm.mean[...] / s
        batch_norm.var[...] = after
        made_up = s * jnp.sqrt((after + batch_norm.epsilon) / (before + batch_norm.epsilon))
        batch_norm.scale[...] = batch_norm.scale[...] * made_up
    return model
