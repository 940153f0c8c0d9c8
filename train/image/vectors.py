"""What a file holds beside kernels, in few bytes: folded BatchNorm, vectors in 8 or 16 bits, quantizers in one record a kind.

In evaluation BatchNorm is a line, ``x -> a x + b`` with ``a = scale / sqrt(var + epsilon)`` and ``b = bias - mean a``. A file
needs no more than that: the network that is read has it with a mean of 0 and a variance of 1. (A network that trains on keeps its
own statistics.)

References:
  Jacob et al. 2018 (arXiv 1712.05877), section 3.2: folding; codes with a scale and a zero point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bqjax.core.leaves import Affine
from bqjax.core.tree import named_leaves

__all__ = ["LAYERS", "few_bits", "folded", "packed_quantizers", "statistics_of", "unpacked_quantizers"]

_FOLDED = "folded"
LAYERS = "layers"


def few_bits(vector: Any, bits: int) -> Any:
    """A vector in float16, or as codes of 8 bits on a line through zero with a scale in float16.

    Args:
      vector: ``[n]``, finite.
      bits: 8 or 16.

    Raises:
      ValueError: a value does not fit float16.
    """
    x = np.asarray(vector, np.float32)
    if not (largest := float(np.abs(x).max())) <= float(np.finfo(np.float16).max):
        raise ValueError(f"a vector with values of {largest:g} does not fit float16: leave vectors as they are (vector_bits=None)")
    if bits == 16:
        return x.astype(np.float16)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float16((high - low) / 255)
    # Rounded up, so that both ends are reached; a vector of zeros has any scale.
    scale = np.nextafter(scale, np.float16(np.inf)) if scale > 0 else np.float16(1)
    zero = np.int32(round(-low / float(scale)))
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255).astype(np.uint8)
    return Affine(codes, np.asarray(scale), np.asarray(zero, np.int32), None, np.dtype(np.float16), 8)


def folded(network: Mapping[str, Any], statistics: Mapping[str, Any], epsilons: Mapping[str, float]) -> tuple[Any, Any]:
    """``(network, statistics)`` with every BatchNorm as a scale and a bias, for a mean of 0 and a variance of 1.

    Args:
      network: nested dict of parameters.
      statistics: nested dict, with ``mean`` and ``var`` of each BatchNorm.
      epsilons: of each BatchNorm, by its name.

    Returns:
      Copies; folded layers have an entry ``"folded": None`` in the network, and none in the statistics.

    Raises:
      ValueError: a BatchNorm has no scale or bias, or is not in the statistics.
    """
    values, told = named_leaves(network), named_leaves(statistics)
    new: dict[str, Any] = {}
    for name, epsilon in epsilons.items():
        for where, leaf in ((values, "scale"), (values, "bias"), (told, "mean"), (told, "var")):
            if f"{name}/{leaf}" not in where:
                raise ValueError(
                    f"BatchNorm {name!r} has no {leaf}: it cannot be folded, leave vectors as they are (vector_bits=None)"
                )
        scale, bias = (np.asarray(values[f"{name}/{leaf}"], np.float64) for leaf in ("scale", "bias"))
        mean, var = (np.asarray(told[f"{name}/{leaf}"], np.float64) for leaf in ("mean", "var"))
        a = scale / np.sqrt(var + epsilon)
        # A network that divides by sqrt(1 + epsilon) again.
        new[name] = {
            "scale": (a * math.sqrt(1 + epsilon)).astype(np.float32),
            "bias": (bias - mean * a).astype(np.float32),
            _FOLDED: None,
        }
    return _with(network, new), _without(statistics, set(epsilons))


def statistics_of(network: Any) -> tuple[Any, dict[str, Any]]:
    """A network that was read, without the marks of :func:`folded`, and the statistics of what was folded, by name."""
    found: dict[str, Any] = {}

    def plain(tree: Any, prefix: str) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if _FOLDED in tree:
            shape = np.shape(tree["bias"])
            found[f"{prefix}mean"], found[f"{prefix}var"] = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        return {key: plain(value, f"{prefix}{key}/") for key, value in tree.items() if key != _FOLDED}

    return plain(network, ""), found


def packed_quantizers(quantizers: Any) -> dict[str, Any]:
    """Intervals and output scales as one float16 vector a kind, with the names of the layers in order.

    Args:
      quantizers: nested dict of scalars ``[]``.

    Raises:
      ValueError: a value does not fit float16.
    """
    layers: dict[str, dict[str, Any]] = {}
    for name, value in named_leaves(quantizers).items():
        layer, _, kind = name.rpartition("/")
        layers.setdefault(layer, {})[kind] = value
    groups: dict[tuple[str, ...], list[str]] = {}
    for layer, scalars in layers.items():
        groups.setdefault(tuple(sorted(scalars)), []).append(layer)
    found = {}
    for i, (kinds, names) in enumerate(groups.items()):
        vectors = {kind: few_bits([np.asarray(layers[layer][kind], np.float32) for layer in names], 16) for kind in kinds}
        found[str(i)] = {LAYERS: dict.fromkeys(names), **vectors}
    return found


def unpacked_quantizers(packed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`packed_quantizers`: scalars in float32, by name."""
    return {
        f"{layer}/{kind}": np.asarray(values, np.float32)[i]
        for group in packed.values()
        for kind, values in group.items()
        if kind != LAYERS
        for i, layer in enumerate(group[LAYERS])
    }


def _with(tree: Any, new: Mapping[str, Any], prefix: str = "") -> Any:
    """The tree with whole subtrees replaced by name."""
    if prefix[:-1] in new:
        return dict(new[prefix[:-1]])
    if not isinstance(tree, Mapping):
        return tree
    return {key: _with(value, new, f"{prefix}{key}/") for key, value in tree.items()}


def _without(tree: Any, names: set[str], prefix: str = "") -> Any:
    """The tree without some subtrees, and without the dicts that are empty then."""
    if not isinstance(tree, Mapping):
        return tree
    kept = {key: _without(value, names, f"{prefix}{key}/") for key, value in tree.items() if f"{prefix}{key}" not in names}
    return {key: value for key, value in kept.items() if not (isinstance(value, dict) and not value)}
