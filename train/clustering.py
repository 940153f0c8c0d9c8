"""GWK in training: which kernels are clustered, and when."""

from __future__ import annotations

from typing import Any

import jax

from bqjax.codebooks import with_codebooks
from bqjax.gwk import gwk_cluster
from bqjax.gwk_blocks import GWKConfig, Weighting
from bqjax.gwk_loop import GWKState, gwk_init, gwk_update, straight_through
from bqjax.leaves import decode
from bqjax.tree import named_leaves, replace
from train.config import GWKPhase

__all__ = ["cluster", "follow", "replaced", "seen"]


def _kernels(network: Any, names: tuple[str, ...]) -> dict[str, Any]:
    leaves = named_leaves(network)
    return {name: leaves[name] for name in names}


def _weighting(settings: GWKPhase) -> Weighting:
    return "coordinate" if settings.weighting == "fisher" else settings.weighting


def _sizes(grads: Any, names: tuple[str, ...], settings: GWKPhase) -> dict[str, Any]:
    """What the weighting goes by: gradients, or their squares."""
    found = _kernels(grads, names)
    return jax.tree.map(jax.numpy.square, found) if settings.weighting == "fisher" else found


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
      ValueError: as :func:`bqjax.gwk.gwk_cluster`.
    """
    weighting = _weighting(settings)
    config = GWKConfig(bits=settings.bits, cv=settings.cv, pw=settings.pw, weighting=weighting)
    weights = _kernels(network, names)
    gradients = jax.tree.map(jax.numpy.zeros_like, weights) if grads is None else _sizes(grads, names, settings)
    tree, _ = gwk_cluster(weights, gradients, key=key, config=config, start=None if start is None else start.tree)
    return gwk_init(weights, gradients, tree, weighting=weighting)


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
    )


def replaced(network: Any, clusters: GWKState, books: Any = None) -> Any:
    """The network whose kernels are the reconstruction, from other codebooks where they are given. Differentiable in them."""
    tree = clusters.tree if books is None else with_codebooks(clusters.tree, books)
    return replace(network, named_leaves(decode(tree)))
