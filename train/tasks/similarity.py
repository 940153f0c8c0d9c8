"""Rank correlation (Spearman) as a score: how well similarities of pairs stand in the order of what people say of them.

A correlation is no mean over examples. A batch is therefore one whole set of pairs, and the paired error is that of the jackknife.

Reference: Efron, Stein 1981, "The jackknife estimate of variance", Annals of Statistics 9(3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bqjax.core.task import Predictions, Score

__all__ = ["jackknife_values", "ranks", "similarity_predict", "similarity_score", "spearman"]

Cosines = Callable[[Any, Mapping[str, Any]], tuple[jax.Array, jax.Array, jax.Array]]
"""``cosines(params, batch)``: of each pair the similarity, what people say, and whether there is such a pair, each ``[n]``."""


def ranks(x: jax.Array, counted: jax.Array) -> jax.Array:
    """Ranks from 1, ties at their mean, among the entries that count: ``[n]``; those of others mean nothing.

    >>> ranks(jnp.array([3.0, 1.0, 3.0, 9.0]), jnp.array([True, True, True, False])).tolist()
    [2.5, 1.0, 2.5, 4.0]
    """
    x = jnp.where(counted, x, jnp.inf)
    own = jnp.sort(x)
    return (jnp.searchsorted(own, x, side="left") + jnp.searchsorted(own, x, side="right") + 1).astype(jnp.float32) / 2


def _correlation(x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """Pearson's, along the last axis."""
    total = weight.sum(-1, keepdims=True)
    x, y = (weight * (z - (weight * z).sum(-1, keepdims=True) / total) for z in (x, y))
    return (x * y).sum(-1) * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1) * jnp.square(y).sum(-1), 1e-12))


def spearman(x: jax.Array, y: jax.Array, counted: jax.Array) -> jax.Array:
    """Spearman's rank correlation of the entries that count.

    >>> round(float(spearman(jnp.array([1.0, 2, 3]), jnp.array([1.0, 3, 2]), jnp.ones(3, bool))), 4)
    0.5
    """
    # In units of the number of pairs, so that float32 holds the squares.
    n = counted.sum().astype(jnp.float32)
    return _correlation(ranks(x, counted) / n, ranks(y, counted) / n, counted.astype(jnp.float32))


def jackknife_values(x: jax.Array, y: jax.Array, counted: jax.Array) -> jax.Array:
    """Pseudo-values ``n rho - (n - 1) rho_i`` of Spearman's correlation, with ``rho_i`` that without pair ``i``: ``[n]``.

    Their mean is close to the correlation, and their standard deviation over ``sqrt(n)`` is its standard error; of differences
    likewise. Of padding they are 0.
    """
    n = counted.sum().astype(jnp.float32)

    def without(z: jax.Array) -> jax.Array:
        """Ranks of all (last axis) where one (first axis) is left out."""
        below = (z[:, None] < z[None, :]) + 0.5 * (z[:, None] == z[None, :])
        return (ranks(z, counted)[None] - below) / n

    weight = (counted[None] & ~jnp.eye(len(x), dtype=bool)).astype(jnp.float32)
    left = _correlation(without(x), without(y), weight)
    return jnp.where(counted, n * spearman(x, y, counted) - (n - 1) * left, 0)


def _errors(cosine: jax.Array, said: jax.Array, counted: jax.Array) -> jax.Array:
    """Squared errors of a line through 0, for which similarities of 0 to 5 are cosines of 0 to 1."""
    return jnp.where(counted, jnp.square(cosine - said / 5), 0)


def similarity_score(cosines: Cosines) -> Score:
    """The score of a whole set of pairs: ``"spearman"``, times their number, and ``"loss"``, the squared error of a line through 0.

    Where a set is cut into several batches, the metric is the mean of their correlations, and not the correlation.
    """

    def score(params: Any, batch: Any) -> tuple[dict[str, jax.Array], jax.Array]:
        cosine, said, counted = cosines(params, batch)
        n = counted.sum().astype(jnp.float32)
        return {"spearman": n * spearman(cosine, said, counted), "loss": _errors(cosine, said, counted).sum()}, n

    return score


def similarity_predict(cosines: Cosines) -> Callable[[Any, Any], Predictions]:
    """Predictions: in which tenth of 0 to 1 a pair's cosine lies (right where the given similarity does).

    What each pair adds is its squared error for the loss, and its jackknife value for the correlation.
    """

    def predict(params: Any, batch: Any) -> Predictions:
        cosine, said, counted = cosines(params, batch)
        tenth, given = (jnp.floor(10 * x).astype(jnp.int32) for x in (cosine, said / 5))
        sums = {"spearman": jackknife_values(cosine, said, counted), "loss": _errors(cosine, said, counted)}
        return Predictions(tenth, tenth == given, counted, sums)

    return predict
