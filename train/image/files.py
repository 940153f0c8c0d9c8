"""A quantized or clustered network as a ``.bq.safetensors`` file, and what such a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax import codec
from bqjax.core.leaves import Affine, Clustered, decode, index_dtype
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.codebooks import codebooks, quantize_codebooks, trimmed_codebooks, with_codebooks
from bqjax.methods.gwk.config import bits_per_weight
from bqjax.quantizers import QuantizerConfig, libra_parameter_binarization, rounded_weights
from train.image.vectors import LAYERS, few_bits, folded, packed_quantizers, statistics_of, unpacked_quantizers

__all__ = ["Stored", "read_quantized", "write_quantized"]

# What training tells quantizers, which no forward pass needs.
_TOLD = ("delta", "progress")


class Stored(NamedTuple):
    """What a file holds of a network.

    Attributes:
      network: nested dict of parameters, decoded.
      clustered: leaves with a codebook by name; codebooks are floating point.
      quantizers: intervals and output scales, by name.
      statistics: what the forward pass needs of it, by name.
    """

    network: Any
    clustered: dict[str, Clustered]
    quantizers: dict[str, Any]
    statistics: dict[str, Any]


def write_quantized(
    path: Path,
    network: Any,
    clustered: Mapping[str, Any],
    quantizers: Any,
    statistics: Any,
    config: QuantizerConfig,
    *,
    codebook_bits: int | None = None,
    vector_bits: int | None = None,
    epsilons: Mapping[str, float] | None = None,
) -> str:
    """Writes a network in 8 bits and below.

    Clustered kernels are indices and codebooks of 8 bits or fewer, on the grid of the layer's weight quantizer or on that which
    they were trained on, so that the layer computes what it did. Without clusters, quantized kernels of up to 8 bits are the codes
    of the quantizer's grid (of IR-Net: signs, from which its powers of two are computed anew). Other kernels (first and last layer)
    are int8 with a scale for each output channel. Everything else that the forward pass needs (biases, BatchNorm, intervals) is as
    it is, or with ``vector_bits`` folded and in few bits (:mod:`train.image.vectors`).

    Args:
      path: of the file; one that is there is replaced.
      network: nested dict of parameters, those of clustered kernels too.
      clustered: kernels with a codebook by name; empty for a network that is quantized and not clustered.
      quantizers: nested dict of intervals and output scales.
      statistics: of BatchNorm, and what quantizers are told, which is left out.
      config: of the quantized layers.
      codebook_bits: of a number of codebooks that were trained rounded, each over its own range
        (:func:`bqjax.kmeans.codebooks.rounded_codebooks`); None: the grids of the layers' quantizers, where these have 8 bits.
      vector_bits: 8 or 16: of biases and of BatchNorm's scale and shift, folded; quantizers are then in float16, one record a kind.
        None leaves all of them in float32.
      epsilons: of each BatchNorm by its name, for folding.

    Returns:
      A line about its size: bits per clustered weight by the paper's formula (indices and codebooks of 8 bits); bits in the file
      per weight of all kernels; bytes of the file, and bits per weight of the whole network by them.
    """
    held: Any = quantizers
    if vector_bits is not None:
        held = packed_quantizers(quantizers)
        quantizers = replace(quantizers, unpacked_quantizers(held))
    tree = clustered or _levels(network, quantizers, config)
    if clustered and codebook_bits is not None:
        # Entries without use are left out afterwards: the grid is that of all entries, as in training.
        small = trimmed_codebooks(quantize_codebooks(tree, bits=codebook_bits))
    else:
        small = quantize_codebooks(trimmed_codebooks(tree), _intervals(tree, quantizers))
    kernels = {name: leaf for name, leaf in named_leaves(network).items() if np.ndim(leaf) > 1}
    others = {name: _int8(np.asarray(leaf)) for name, leaf in kernels.items() if name not in small}
    stored_network, told = replace(network, small | others), _needed(statistics)
    weights = sum(leaf.size for leaf in named_leaves(stored_network).values())
    if vector_bits is not None:
        stored_network, told = folded(stored_network, told, epsilons or {})
        vectors = {name: leaf for name, leaf in named_leaves(stored_network).items() if len(leaf.shape) == 1}
        stored_network = replace(stored_network, {name: few_bits(leaf, vector_bits) for name, leaf in vectors.items()})
    info = codec.save(path, {"network": stored_network, "quantizers": held, "statistics": told}, force=True)
    stored = [leaf for leaf in info.leaves if len(leaf.shape) > 1]
    of_kernels = 8 * sum(leaf.bytes for leaf in stored) / sum(leaf.size for leaf in stored)
    formula = f"{bits_per_weight(small):.3f} bits per clustered weight (formula), " if small else "bits: "
    return (
        f"{path}: {formula}{of_kernels:.3f} per weight of all "
        f"{len(stored)} kernels (file), {info.file_bytes:,} bytes, {8 * info.file_bytes / weights:.3f} bits per weight of all "
        f"{weights:,}"
    )


def _intervals(tree: Any, quantizers: Any) -> dict[str, tuple[Any, Any]]:
    """Intervals of the weight quantizers of clustered kernels; those that share a codebook have none in common."""
    scalars, found = named_leaves(quantizers), {}
    for name in codebooks(tree):
        layer = name.removesuffix("kernel")
        if f"{layer}weight_lower" in scalars:
            found[name] = (scalars[f"{layer}weight_lower"], scalars[f"{layer}weight_upper"])
    return found


def _levels(network: Any, quantizers: Any, config: QuantizerConfig) -> dict[str, Clustered]:
    """Kernels of quantized layers as indices into the levels of their quantizer, which gives each level its own code again."""
    if config.weight_bits is None or config.weight_bits > 8:  # what a codebook of the file can hold
        return {}
    kernels, scalars, found = named_leaves(network), named_leaves(quantizers), {}
    steps = 2**config.weight_bits - 1
    for layer in sorted(name.removesuffix("/scale") for name in scalars if name.endswith("/scale")):
        kernel = jnp.asarray(kernels[f"{layer}/kernel"])
        if config.rounding == "irnet":
            unit, lower, upper = libra_parameter_binarization(kernel) > 0, np.float32(-1), np.float32(1)
        else:
            lower, upper = (scalars[f"{layer}/{end}"] for end in ("weight_lower", "weight_upper"))
            unit = rounded_weights(kernel, {"weight_lower": lower, "weight_upper": upper}, config)
        codes = np.rint(np.asarray(unit, np.float32) * steps).astype(index_dtype(steps + 1)).ravel()
        entries = np.linspace(lower, upper, steps + 1, dtype=np.float32)[:, None]
        found[f"{layer}/kernel"] = Clustered(codes, entries, kernel.shape, kernel.dtype, tuple(range(kernel.ndim)))
    return found


def _int8(kernel: np.ndarray) -> Affine:
    """int8 codes with a scale for each output channel, the last axis."""
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.clip(np.rint(kernel / scale.reshape((1,) * (kernel.ndim - 1) + (-1,))), -127, 127).astype(np.int8)
    return Affine(codes, scale, np.zeros(scale.shape, np.int32), kernel.ndim - 1, kernel.dtype)


def read_quantized(path: Path) -> Stored:
    """What :func:`write_quantized` wrote.

    Raises:
      ValueError: the file is damaged.
    """
    loaded = codec.load(path)
    kernels = {name: leaf for name, leaf in named_leaves(loaded["network"]).items() if isinstance(leaf, Clustered)}
    clustered = with_codebooks(kernels, codebooks(kernels))
    network, statistics = statistics_of(jax.tree.map(_as_float32, decode(loaded["network"])))
    quantizers = loaded["quantizers"]
    packed = any(isinstance(group, Mapping) and LAYERS in group for group in quantizers.values())
    scalars = unpacked_quantizers(quantizers) if packed else named_leaves(quantizers)
    return Stored(network, clustered, scalars, named_leaves(loaded["statistics"]) | statistics)


def _as_float32(leaf: Any) -> Any:
    return jnp.asarray(leaf, jnp.float32) if leaf.dtype == jnp.float16 else leaf


def _needed(rest: Any) -> Any:
    """``rest`` without what training tells quantizers, and without the dicts that are empty then."""
    if not isinstance(rest, Mapping):
        return rest
    kept = {key: _needed(value) for key, value in rest.items() if key not in _TOLD}
    return {key: value for key, value in kept.items() if not (isinstance(value, dict) and not value)}
