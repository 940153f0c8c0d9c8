"""GWK in training: which kernels are clustered, and when."""

from __future__ import annotations

import fnmatch
from typing import Any

import jax

from bqjax.adapters.flax.equalize import batch_norms, equalize_channels
from bqjax.core.leaves import decode
from bqjax.core.rules import Rule
from bqjax.core.tree import named_leaves, replace
from bqjax.methods.gwk.cluster import gwk_cluster
from bqjax.methods.gwk.config import GWKConfig, Weighting
from bqjax.methods.gwk.training import GWKState, gwk_init, gwk_update, straight_through
from train.image.config import GWKLayers, GWKPhase

__all__ = ["cluster", "equalized", "follow", "replaced", "seen", "set_bits"]


def _kernels(network: Any, names: tuple[str, ...]) -> dict[str, Any]:
    leaves = named_leaves(network)
    return {name: leaves[name] for name in names}


def _weighting(settings: GWKPhase) -> Weighting:
    return "coordinate" if settings.weighting == "fisher" else settings.weighting


def _sizes(grads: Any, names: tuple[str, ...], settings: GWKPhase) -> dict[str, Any]:
    """What the weighting goes by: gradients, or their squares."""
    found = _kernels(grads, names)
    return jax.tree.map(jax.numpy.square, found) if settings.weighting == "fisher" else found


def _rules(names: tuple[str, ...], settings: GWKPhase) -> list[Rule[GWKConfig | int]]:
    """Blocks of each kernel."""

    def config(of: GWKPhase | GWKLayers) -> GWKConfig:
        return GWKConfig(bits=of.bits, cv=of.cv, pw=of.pw, weighting=_weighting(settings))

    apart: list[Rule[GWKConfig | int]] = [
        Rule(f"{each.pattern}/kernel", config(each), group=each.group) for each in settings.layers
    ]
    if all(_apart(name, settings) for name in names):
        return apart
    return [*apart, Rule("*", config(settings))]


def _apart(name: str, settings: GWKPhase) -> GWKLayers | None:
    return next((each for each in settings.layers if fnmatch.fnmatchcase(name, f"{each.pattern}/kernel")), None)


def set_bits(names: tuple[str, ...], settings: GWKPhase) -> dict[str, float]:
    """``index_bits`` of the kernels that have them."""
    found = {name: _apart(name, settings) for name in names}
    return {name: each.index_bits for name, each in found.items() if each is not None and each.index_bits is not None}


def equalized(model: Any, layers: tuple[str, ...], settings: GWKPhase) -> Any:
    """The network with the channels of these layers equalized, those of a codebook together.

    Raises:
      ValueError: a layer has no BatchNorm, see :func:`bqjax.adapters.flax.equalize.batch_norms`.
    """
    found = {layer: _apart(f"{layer}/kernel", settings) for layer in layers}
    groups = {layer: f"group {each.group}" for layer, each in found.items() if each is not None and each.group is not None}
    return equalize_channels(model, batch_norms(model, list(layers)), groups)


def cluster(network: Any, grads: Any, names: tuple[str, ...], settings: GWKPhase, key: jax.Array, start: Any = None) -> GWKState:
    """The kernels ``names`` of a network, clustered.

    Args:
      network: nested dict of arrays.
      grads: gradients of it, or None: all weights count the same.
      names: of the kernels.
      settings: of the phase.
      key: for the seeds of k-means.
      start: an earlier result, whose codebooks to start from.

    Raises:
      ValueError: as :func:`bqjax.methods.gwk.cluster.gwk_cluster`.
    """
    weights = _kernels(network, names)
    gradients = jax.tree.map(jax.numpy.zeros_like, weights) if grads is None else _sizes(grads, names, settings)
    tree, _ = gwk_cluster(weights, gradients, _rules(names, settings), key=key, start=None if start is None else start.tree)
    return gwk_init(weights, gradients, tree, weighting=_weighting(settings), bits=set_bits(names, settings))


def seen(network: Any, clusters: GWKState) -> Any:
    """The network with clustered kernels in the forward pass; gradients go straight through to the latent ones."""
    return replace(network, straight_through(_kernels(network, tuple(clusters.tree)), clusters.tree))


def follow(clusters: GWKState, network: Any, grads: Any, settings: GWKPhase, progress: jax.Array) -> GWKState:
    """Clusters after one more step; from ``settings.freeze`` of the phase on, each block stays where it is."""
    names = tuple(clusters.tree)
    return gwk_update(
        clusters,
        _kernels(network, names),
        _sizes(grads, names, settings),
        decay=settings.decay,
        frozen=progress >= settings.freeze,
        weighting=_weighting(settings),
        rate=settings.rate,
        bits=set_bits(names, settings),
    )


def replaced(network: Any, clusters: GWKState) -> Any:
    """The network whose kernels are the reconstruction."""
    return replace(network, named_leaves(decode(clusters.tree)))
