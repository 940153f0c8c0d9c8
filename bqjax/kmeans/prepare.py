"""Checks of the arguments of k-means on blocks, and points brought to order 1 before the iterations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bqjax.kmeans.seeding import Points
from bqjax.kmeans.segments import concrete, over_pieces
from bqjax.kmeans.tiles import Tiles, tiled

__all__ = []


def tiled_points(points: Points, move: Callable[[jax.Array], jax.Array] = lambda x: x) -> Tiles:
    return Tiles(tiled(points.x, move), tiled(points.weights), None if points.metric is None else tiled(points.metric))


def power_of_two(extent: jax.Array) -> jax.Array:
    """The power of two that brings the extent to order 1: scaling by it rounds nothing."""
    return jnp.where(extent > 0, jnp.exp2(-jnp.round(jnp.log2(jnp.where(extent > 0, extent, 1)))), 1)


def widened(ends: tuple[jax.Array, jax.Array], _: Any, x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least and largest coordinates of points that count."""
    counted = weights > 0
    low = jnp.where(counted, x, jnp.inf).min(0, keepdims=True)
    high = jnp.where(counted, x, -jnp.inf).max(0, keepdims=True)
    return jnp.minimum(ends[0], low), jnp.maximum(ends[1], high)


def moved(x: jax.Array, mask: jax.Array | None, centre: jax.Array, scale: jax.Array) -> jax.Array:
    """Coordinates of :func:`prepared`, which has moved those with a mask itself."""
    return x if mask is not None else (x - centre) * scale


def prepared(x: jax.Array, weights: jax.Array | None, mask: jax.Array | None) -> tuple[Points, jax.Array, jax.Array]:
    """Points with weights and metric, and the mean and scale that :func:`moved` takes.

    Coordinates about the weighted mean and of order 1 lose nothing to cancellation in scores. Without a mask they are moved where
    they are used, so that there is no copy of all of them beside the tiles.
    """
    n, d = x.shape
    real = None if mask is None else mask.astype(x.dtype)
    if weights is None:
        weights = ones_like_rows(x)
    each = weights.ndim == 2 and weights.shape[1] == d and d > 1
    weights = weights.reshape(n, -1)
    if mask is not None and real is not None:
        weights, x = weights * real, jnp.where(mask, x, 0)
    largest = weights.max()
    uniform = jnp.ones_like(weights) if real is None else real
    weights = jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1), uniform)
    metric = None
    if each:
        # A point without any weight still goes to its nearest entry.
        none = weights.max(1, keepdims=True) <= 0
        metric = jnp.where(none, jnp.ones_like(weights) if real is None else real, weights)
    elif real is not None:
        metric = real
    mass = weights.sum(0)
    centre = jnp.where(mass > 0, (x * weights).sum(0) / jnp.where(mass > 0, mass, 1), 0)[None]
    if real is not None:
        x = (x - centre) * real
    offset = centre if real is None else jnp.zeros_like(centre)
    extent = over_pieces(lambda most, _, x: jnp.maximum(most, jnp.abs(x - offset).max()), jnp.zeros((), x.dtype), x)
    scale = power_of_two(extent)
    return Points(x if mask is None else x * scale, weights, metric), centre, scale


def ones_like_rows(x: jax.Array) -> jax.Array:
    """``[n, 1]`` ones, no constant: XLA would work out, slowly and while it compiles, whatever follows from ones alone."""
    return jnp.where(jnp.isnan(x[:, :1]), jnp.zeros((), x.dtype), jnp.ones((), x.dtype))


def checked_k(value: Any, what: str) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be an integer, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{what} must be at least 1, got {count}")
    return count


def matrix(a: Any, what: str) -> jax.Array:
    a = jnp.asarray(a)
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"{what} must be a non-empty matrix of one row per {what[:-1]}, got shape {a.shape}")
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"{what} must be floating point, got {a.dtype}")
    check_content(a, what)
    return a.astype(jnp.float32)


def check_content(a: jax.Array, what: str) -> None:
    if concrete(a) and not bool((finite := jnp.isfinite(a)).all()):
        raise ValueError(f"{what} holds {int((~finite).sum())} NaN or infinite entries of {a.size}")


def check_weights(weights: Any, x: jax.Array) -> jax.Array | None:
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.shape not in (x.shape[:1], x.shape):
        raise ValueError(f"weights must have shape {x.shape[:1]} or {x.shape}, got {weights.shape}")
    check_content(weights, "weights")
    if concrete(weights) and bool((weights < 0).any()):
        raise ValueError(f"weights must not be negative, the smallest is {float(weights.min())}")
    return weights.astype(jnp.float32)


def check_mask(mask: Any, x: jax.Array) -> jax.Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.shape != x.shape or mask.dtype != bool:
        raise ValueError(f"mask must be boolean of shape {x.shape}, got {mask.dtype} {mask.shape}")
    return mask
