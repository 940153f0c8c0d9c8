"""Where k-means starts: weighted samples of points, and seeds among them by k-means++.

Reference:
  Arthur and Vassilvitskii, "k-means++: The advantages of careful seeding", SODA 2007; the greedy variant is that of its
  last section.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["Points", "seeds", "thin"]

# Seeds are drawn one by one up to this k, beyond it in this many rounds of several.
_SEEDING_ROUNDS = 1024


class Points(NamedTuple):
    """Points one a row."""

    x: jax.Array  # [n, d]
    weights: jax.Array  # [n, 1] or [n, d]
    metric: jax.Array | None  # [n, d]


def thin(points: Points, size: int, key: jax.Array) -> Points:
    """One point of every run of ``n // size`` neighbours, drawn in proportion to its weight and standing for all of the run."""
    n = points.x.shape[0]
    stride = n // size
    if stride < 2:
        return points
    mass = points.weights.mean(1)
    mass = jnp.pad(mass, (0, -n % stride)).reshape(-1, stride)
    upto = jnp.cumsum(mass, 1)
    total = upto[:, -1]
    drawn = (upto <= (jax.random.uniform(key, total.shape) * total)[:, None]).sum(1)
    # Rounding may draw beyond the last point of positive weight, and the last run may be short.
    drawn = jnp.minimum(drawn, stride - 1 - jnp.argmax(mass[:, ::-1] > 0, 1))
    own = jnp.take_along_axis(mass, drawn[:, None], 1)
    at = jnp.minimum(lax.iota(jnp.int32, total.size) * stride + drawn, n - 1)
    scale = jnp.where(own > 0, total[:, None] / jnp.where(own > 0, own, 1), 0)
    return Points(points.x[at], points.weights[at] * scale, None if points.metric is None else points.metric[at])


def seeds(points: Points, k: int, key: jax.Array) -> jax.Array:
    """``[k, d]`` points by k-means++: each drawn in proportion to its weighted squared distance from those before.

    Of several candidates the one that leaves the least error is taken (greedy k-means++), for ``k`` up to 1024; beyond,
    several seeds are drawn at a time.
    """
    x, weights = points.x, points.weights
    n = x.shape[0]
    rounds = min(k, _SEEDING_ROUNDS)
    together = -(-k // rounds)
    candidates = 2 + int(np.log(k)) if together == 1 else 1

    random = jax.random.uniform(key, (rounds, max(together, candidates)), maxval=1 - 2.0**-20)

    def errors(at: jax.Array) -> jax.Array:
        return (jnp.square(x - x[at][None]) * weights).sum(1)

    def draw(left: jax.Array, u: jax.Array) -> jax.Array:
        upto = jnp.cumsum(jnp.where(jnp.isinf(left), weights.mean(1), left))
        at = jnp.minimum(jnp.searchsorted(upto, u * upto[-1], side="right"), n - 1)
        # With as many seeds as distinct points nothing is left to draw from.
        return jnp.where(upto[-1] > 0, at, jnp.argmax(weights.mean(1))).astype(jnp.int32)

    def seed(r: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, left = state
        at = draw(left, random[r])
        if together > 1:
            left = lax.fori_loop(0, together, lambda i, left: jnp.minimum(left, errors(at[i])), left)
            return lax.dynamic_update_slice_in_dim(chosen, at, r * together, 0), left
        remaining = lax.map(lambda a: jnp.minimum(left, errors(a)), at)
        best = jnp.argmin(remaining.sum(1))
        return chosen.at[r].set(at[best]), remaining[best]

    # Infinite before the first seed, which is drawn by weight alone.
    nothing = (jnp.zeros(rounds * together, jnp.int32), jnp.full(n, jnp.inf, x.dtype))
    chosen = lax.fori_loop(0, rounds, seed, nothing)[0]
    return x[chosen[:k]]
